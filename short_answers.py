
class ShortAnswers:
    async def score(self, prompt, answers):
        return [-float(len(answer)) for answer in answers]
