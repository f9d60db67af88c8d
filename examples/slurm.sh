#!/bin/bash
# One script for three jobs under SLURM, sent from the repository's folder on a file system that all nodes see:
#   sbatch --gpus-per-node=4 examples/slurm.sh train ixi-eqsim_com_eqadv          one training on the GPUs of a node
#   sbatch --gpus-per-node=1 --array=1-8 examples/slurm.sh search ixi-eqsim_com_eqadv   one worker per array task
#   sbatch --cpus-per-task=16 examples/slurm.sh prepare ixi                       preparation on a node's cores
# Set for your site: partition and account (#SBATCH lines or options), and before sending
#   MLFLOW_TRACKING_URI   the server that keeps runs (docs/how-to/beyond-one-machine.md)
# Workers of a search meet in search.storage of params.yaml: name a database server there.
#SBATCH --job-name=equisynth
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

task=${1:?train, search or prepare}
name=${2:?an experiment, or a dataset for prepare}
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

case $task in
    train)
        # An interrupted or requeued job continues after its last epoch. The port is free per job on a shared node.
        processes=${SLURM_GPUS_ON_NODE:-1}
        export OMP_NUM_THREADS=$((OMP_NUM_THREADS / processes > 0 ? OMP_NUM_THREADS / processes : 1))
        torchrun --nproc-per-node "$processes" --master-port $((20000 + ${SLURM_JOB_ID:-0} % 20000)) \
            -m equisynth train "$name"
        ;;
    search)
        # Trials are shared out by the study's storage; a trial whose worker was killed is taken up by another.
        equisynth search "$name"
        ;;
    prepare)
        OMP_NUM_THREADS=1 equisynth prepare "$name" --jobs "${SLURM_CPUS_PER_TASK:-1}"
        ;;
    *)
        echo "slurm.sh: task '$task', expected train, search or prepare" >&2
        exit 2
        ;;
esac
