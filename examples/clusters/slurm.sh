#!/bin/bash
# sbatch examples/clusters/slurm.sh: four machines, one process for each GPU, one run folder that all machines see.
#SBATCH --job-name=rnnjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# SIGTERM two minutes before the end of the time: all processes stop at the same update and save.
#SBATCH --signal=TERM@120
set -euo pipefail

TEXT=$HOME/text          # the same files on all machines
RUN=$HOME/runs/large     # on a file system that all machines share

# JAX finds the address of process 0, the number of processes and the GPU of each from SLURM's variables. A task that
# fails ends the others, and a job that is started again goes on where the last checkpoint is.
if compgen -G "$RUN/checkpoints/step_*" > /dev/null; then
  set -- train --resume "$RUN"
else
  set -- train "$TEXT" --out "$RUN" --force --epochs 1 --layers 2 --hidden 2048 --batch-size 1024 --chunk-len 256
fi
srun --kill-on-bad-exit=1 rnnjax "$@" --distributed
