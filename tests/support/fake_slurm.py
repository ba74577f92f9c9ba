"""Slurm on this machine, which is each of its nodes: ``sbatch``, ``srun`` and ``scontrol`` as scripts in a folder.

``sbatch`` knows the options that job files may have, and their forms, and refuses others, as ``--test-only`` does.
``ray start`` gets what a site would set for each node: one core and a small object store.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.1")  # Ray's head listens on the first one's address

_SBATCH = f"""\
#!{sys.executable}
import os, re, subprocess, sys
FORMS = {{
    "job-name": r"[\\w-]+", "nodes": r"\\d+", "ntasks-per-node": r"1", "gpus-per-node": r"\\d+",
    "cpus-per-task": r"\\d+",
    "time": r"(\\d+-)?\\d+:\\d\\d:\\d\\d", "output": r"\\S+", "signal": r"(R?B:)?[A-Z]+(@\\d+)?", "partition": r"\\S+",
    "account": r"\\S+", "mem": r"\\d+[KMGT]?",
}}
script = sys.argv[-1]
given = {{}}
for line in open(script).read().splitlines():
    if line.startswith("#SBATCH"):
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        if not re.fullmatch(FORMS.get(name, "(?!)"), value):
            sys.exit(f"sbatch: error: {{line}}")
        given[name] = value
nodes = os.environ["FAKE_NODES"].split(",")
if int(given["nodes"]) > len(nodes):
    sys.exit("sbatch: error: Requested node configuration is not available")
job = os.environ["FAKE_JOB"]
slurm = {{"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": ",".join(nodes), "SLURM_SUBMIT_DIR": os.getcwd()}}
if "cpus-per-task" in given:
    slurm["SLURM_CPUS_PER_TASK"] = given["cpus-per-task"]
with open(given["output"].replace("%j", job), "ab") as output:
    child = subprocess.Popen(["bash", script], env=os.environ | slurm, stdout=output, stderr=output)
print(f"Submitted batch job {{job}}", child.pid, flush=True)
sys.exit(child.wait())
"""
_SRUN = """\
#!/bin/bash
while [[ "$1" == --* ]]; do
    case "$1" in --overlap | --nodes=1 | --ntasks=1 | --nodelist=*) shift ;; *) echo "srun: $1" >&2; exit 1 ;; esac
done
exec "$@"
"""
_SCONTROL = '#!/bin/bash\n[ "$1 $2" = "show hostnames" ] && printf "%s\\n" ${3//,/ }\n'
_RAY = """\
#!/bin/bash
if [ "$1" = start ]; then set -- "$@" --num-cpus=1 --object-store-memory=80000000; fi
if [ "$2" = --head ]; then set -- "$@" --include-dashboard=false; fi
exec REAL "$@"
"""


def fake_slurm(folder: Path, job: int) -> dict[str, str]:
    """Write the commands into ``folder``; returns the environment of a user who has them."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(sys.executable).parent
    ray = shutil.which("ray", path=str(here)) or "ray"
    scripts = {"sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL, "ray": _RAY.replace("REAL", ray)}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(folder), str(here), os.environ["PATH"]])
    return os.environ | {"PATH": path, "FAKE_NODES": ",".join(NODES), "FAKE_JOB": str(job), "RAY_POLL_SECONDS": "0.5"}
