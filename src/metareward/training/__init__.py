"""Training: DPO and supervised fine-tuning by TRL in child processes. What asks a model for text is not here."""
