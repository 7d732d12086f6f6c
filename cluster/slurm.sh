#!/usr/bin/env bash
# One run of csr_ray on the nodes of one Slurm job: starts Ray on all of them, runs `csr-ray run` on the first one, and
# ends what it has started. cluster/README.md says how to submit, follow, stop and resume.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 --time=24:00:00 \
#     cluster/slurm.sh configs/llava15-7b.yaml run.dir=/shared/me/runs/llava15-7b \
#     data.prompts=/shared/me/data/CSR-Prompt-Dataset-12k.json data.images=/shared/me/data/train2014
#
# From the environment of sbatch:
#   CSR_RAY_BIN            folder of `ray`, `csr-ray` and `python`, the same on all nodes (default: .venv/bin in the
#                          folder that sbatch is called in)
#   CSR_RAY_NODES_WAIT_S   seconds in which all nodes have to join (default: 300)
#   CSR_RAY_REQUEUE        0: a run that the time limit stops is not put into the queue again (default: 1)
#
#SBATCH --job-name=csr-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --output=csr-ray-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the time limit this shell, and nobody else, gets SIGUSR1.
#SBATCH --signal=B:USR1@180

# shellcheck disable=SC2329  # traps and srun call functions of this script
set -euo pipefail

say() { echo "slurm.sh: $*"; }

refuse() {
  say "$*" >&2
  exit 2
}

[[ $# -ge 1 && -n ${SLURM_JOB_ID:-} ]] ||
  refuse "usage: sbatch [options of sbatch] cluster/slurm.sh CONFIG [key.sub=value ...]"
bin=${CSR_RAY_BIN:-$PWD/.venv/bin}
for program in ray csr-ray python; do
  [[ -x $bin/$program ]] ||
    refuse "CSR_RAY_BIN = $bin: no $program there; install csr_ray on a file system of all nodes, and name its folder"
done

# A secret of this job alone. It travels in the environment, because everybody on a node can read a command line.
RAY_AUTH_TOKEN=$("$bin/python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

# Jobs may share a node: every port is a free one, and each has a folder of its own for Ray's sockets and logs. Its path
# is short, because a socket's has 107 bytes at most. Ray opens its own folder to everybody, and so gets one inside. A job
# that Slurm has killed leaves its folder; the next one of this user on that node removes it.
make_scratch() {
  local queued old job
  if queued=$(squeue --noheader --user="$(id -un)" --format=%A); then
    for old in /tmp/csr-ray-*-*; do
      job=${old#/tmp/csr-ray-} job=${job%-*}
      [[ -O $old && $job =~ ^[0-9]+$ ]] && ! grep -qx "$job" <<<"$queued" && rm -rf "$old"
    done
  fi
  mktemp -d "/tmp/csr-ray-$SLURM_JOB_ID-XXXXXX"
}
any_port=(--dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0)
client_port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
scratch=$(make_scratch)

head='' workers='' driver='' is_at_limit=''

# end PID COMMAND...: the command asks the process to end; it has 30 s for that, of which a run needs run.grace_s.
end() {
  kill -0 "$1" 2>/dev/null || return 0
  "${@:2}" || true
  for _ in {1..60}; do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.5
  done
  kill -KILL "$1" 2>/dev/null || true
}

leave() { # with the exit code that the script ends with
  local code=$?
  trap '' TERM USR1
  [[ -z $driver ]] || end "$driver" kill -TERM "$driver"
  # The job's steps, but not this shell. srun itself would not pass SIGTERM on, but kill at once.
  [[ -z $workers ]] || end "$workers" scancel --signal=TERM "$SLURM_JOB_ID"
  [[ -z $head ]] || end "$head" kill -TERM "$head"
  rm -rf "$scratch"
  if [[ -n $is_at_limit && $code -eq 1 && ${CSR_RAY_REQUEUE:-1} != 0 ]]; then
    say "put into the queue again; the run goes on where it was"
    scontrol requeue "$SLURM_JOB_ID"
  fi
}
trap leave EXIT

stop_the_run() { # the run hears of both signals as SIGTERM; a second one ends it at once
  say "$1: the run is told to stop"
  [[ -n $driver ]] || exit 1
  kill -TERM "$driver" 2>/dev/null || true
  sleep 3
  # A plain scancel signals every process of the job. Without Ray there is nothing to wait for.
  kill -0 "$head" 2>/dev/null || kill -TERM "$driver" 2>/dev/null || true
}
trap 'is_at_limit=1; stop_the_run "the time limit is near"' USR1
trap 'stop_the_run SIGTERM' TERM

"$bin/ray" start --head --block --port=0 --temp-dir="$scratch/ray" --include-dashboard=false --disable-usage-stats \
  --num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --ray-client-server-port="$client_port" "${any_port[@]}" \
  >"$scratch/head.log" 2>&1 &
head=$!
until [[ -s $scratch/ray/ray_current_cluster ]]; do
  kill -0 "$head" 2>/dev/null || {
    cat "$scratch/head.log" >&2
    say "Ray did not start on $SLURMD_NODENAME" >&2
    exit 1
  }
  sleep 0.5
done
RAY_ADDRESS=$(<"$scratch/ray/ray_current_cluster")
export RAY_ADDRESS
export -p | grep -E ' RAY_(ADDRESS|AUTH)' >"$scratch/environment"

# On every other node, in a shell of its own that srun starts.
start_worker() {
  local scratch ray code=0
  scratch=$(make_scratch)
  "$1/ray" start --block --address="$RAY_ADDRESS" --temp-dir="$scratch/ray" --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" "${@:2}" >"$scratch/worker.log" 2>&1 &
  ray=$!
  trap 'kill -TERM "$ray"' TERM
  while kill -0 "$ray" 2>/dev/null; do wait "$ray" || code=$?; done
  ((code < 2 || code > 128)) || tail -n 20 "$scratch/worker.log" >&2
  rm -rf "$scratch"
}

num_others=$((SLURM_JOB_NUM_NODES - 1))
if ((num_others)); then
  srun --nodes="$num_others" --ntasks="$num_others" --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 \
    bash -c "$(declare -f make_scratch start_worker); start_worker \"\$@\"" start_worker "$bin" "${any_port[@]}" &
  workers=$!
fi
"$bin/python" - "$SLURM_JOB_NUM_NODES" "${CSR_RAY_NODES_WAIT_S:-300}" <<'PYTHON' || exit 1
import sys, time

import ray

num_wanted, wait_s = int(sys.argv[1]), float(sys.argv[2])
ray.init(log_to_driver=False, logging_level="ERROR")
until_s = time.monotonic() + wait_s
while (num := sum(node["Alive"] for node in ray.nodes())) < num_wanted:
    if time.monotonic() > until_s:
        sys.exit(f"slurm.sh: {num} of {num_wanted} nodes have joined in {wait_s:g} s; CSR_RAY_NODES_WAIT_S says more")
    time.sleep(1)
print(f"slurm.sh: Ray has {num} nodes: {', '.join(sorted(node['NodeManagerHostname'] for node in ray.nodes()))}")
PYTHON

say "to look inside: srun --jobid=$SLURM_JOB_ID --overlap --nodes=1 --ntasks=1 --nodelist=$SLURMD_NODENAME" \
  "bash -c 'source $scratch/environment; $bin/ray status'"
"$bin/csr-ray" run "$@" &
driver=$!
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done # a signal ends a wait, not the run
code=0
wait "$driver" || code=$?
driver=''
say "the run ended with exit code $code"
exit "$code"
