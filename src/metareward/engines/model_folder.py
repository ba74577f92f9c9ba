"""What a model folder must hold, looked at without loading anything."""

from __future__ import annotations

from pathlib import Path

from metareward.errors import UserError


def require_model_folder(folder: Path) -> None:
    """Raise `UserError` naming what is missing, unless this looks like a Hugging Face folder with safetensors."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so this is not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors weights; save the model with save_pretrained()")
