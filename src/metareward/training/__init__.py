"""DPO and SFT in a child process, on TRL and accelerate. Nothing here knows recipes or how pairs are made."""
