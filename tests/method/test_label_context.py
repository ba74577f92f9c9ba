"""What a label is about: the verdict, a criterion, a limit or something else, by the words around it."""

import pytest

from metareward.method.label_context import Context, begins_sentence, is_hedged, label_context
from metareward.method.verdict_format import SCORES
from metareward.text import fold


def context(text: str) -> Context:
    """The context of the last label in ``text``."""
    folded = fold(text)
    anchor = SCORES.anchors(folded.text)[-1]
    return label_context(folded.text, anchor, begins_sentence(folded, folded.positions(), anchor))


ROLES = {
    "plain": (
        "Score: 4",
        "answer_score: 4",
        "It is good. Score: 4",
        "Final: Score: 4",
        "It deserves Score: 4",
        "My score: 4",
        "A score: 4",
        "For this answer my score: 4",
        "I give the answer a score of 4",
        "I would say Score: 4",
        "so this answer 'score': 4",
        "| Score: 4 |",
        "{'score': 4}",
    ),
    "total": (
        "Final score: 4",
        "**Final** score: 4",
        "final_score: 4",
        "final_answer_score: 4",
        "answer_total: 4",
        "<final_score>4</final_score>",
        "Total: 4",
    ),
    "criterion": (
        "Relevance score: 1",
        "Relevance Score: 1",
        "Relevance: Score: 1",
        "**Relevance:** Score: 1",
        "Relevance - Score: 1",
        "Relevance – Score: 1",
        "Relevance — Score: 1",
        "| Relevance | Score: 1 |",
        "Relevance (Score: 1)",
        "Score (relevance): 1",
        "The final relevance score: 1",
        "relevance_score: 1",
        "<relevance_score>1</relevance_score>",
        "<clarity-final_score>1</clarity-final_score>",
        "4 points: it is good",
        "Answer A score: 4",
        "Answer A final score: 4",
        "The team's final score: 4",
        "The team’s final score: 4",
    ),
    "limit": ("Maximum score: 5", "The highest possible score: 5", "max_score: 5", "max_points_score: 5"),
    "aside": (
        "Previous score: 3",
        "A plain copy would earn Score: 1",
        'the answer says "Score: 5"',
        "the answer says 'Score: 5'",
    ),
}


@pytest.mark.parametrize(("role", "text"), [(role, text) for role, texts in ROLES.items() for text in texts])
def test_roles(role: str, text: str) -> None:
    assert context(text).role == role
    assert context(f"{'It is a good answer. ' * 30}\n\n{text}").role == role


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("Relevance\nScore: 1", "relevance"),
        ("## 2. **Clarity of style**\n\nScore: 1", "clarity of style"),
        ("Relevance: Score: 1", "relevance"),
        ("Conclusion\n\nScore: 4", ""),
        ("Final verdict:\nScore: 4", ""),
        (f"{'A line that is too long for a heading. ' * 3}\nScore: 4", ""),
        ("Score: 4", ""),
    ],
)
def test_headings(text: str, heading: str) -> None:
    assert context(text).heading == heading
    assert context(f"{'It is a good answer. ' * 30}\n\n{text}").heading == heading


def test_what_starts_a_sentence() -> None:
    assert context("It is good. Score: 4").starts
    assert context("It is good Score: 4").starts
    assert context("it is good. score: 4").starts
    assert context("The final score: 4").starts
    assert not context("By my score: 4").starts


@pytest.mark.parametrize(
    ("text", "hedged"),
    [
        ("So the score is 4.", False),
        ("It is not 3. So the score is 4. It is not 5.", False),
        ("I doubt that the score is 4 at most.", True),
        ("If it is right, the score is 4.", True),
        ("It isn't so that the score is 4", True),
    ],
)
def test_hedged_sentences(text: str, hedged: bool) -> None:
    start = text.index("score")
    assert is_hedged(text.lower(), start, text.index("4") + 1) == hedged
    assert is_hedged(text.lower(), start) == (hedged and "most" not in text)
