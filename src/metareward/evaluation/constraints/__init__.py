"""The constraint world: prompts for real models that a program can check, and the guarded truth about answers."""
