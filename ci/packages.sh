#!/usr/bin/env bash
# The system's packages that tests use: Open MPI's mpiexec, and Slurm. Installed where that is possible (root, on
# Debian and its kin); elsewhere the tests that need what is missing are skipped, and say so.
set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in munged slurmctld slurmd sbatch srun scancel; do
    command -v "$program" >/dev/null || missing+=("$program")
done
# The virtual environment has an mpiexec, too: the tests compare both.
[[ -x /usr/bin/mpiexec ]] || missing+=(/usr/bin/mpiexec)
if [[ ${#missing[@]} == 0 ]]; then
    echo "all there"
elif [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not here, and only root on Debian installs them by itself: ${missing[*]}"
else
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no question, no daemon started
    apt-get -q update
    apt-get -q install -y --no-install-recommends slurm-wlm munge openmpi-bin
    echo "installed: slurm-wlm munge openmpi-bin"
fi
