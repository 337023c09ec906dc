#!/usr/bin/env bash
# A real Slurm on this machine, for trying things: munged, slurmctld and two slurmd, the nodes n1 and n2
# (NODES=4 before the command: four).
#   eval "$(bash slurm/local-cluster.sh up [FOLDER])"     then sinfo, sbatch, mer-dist slurm ...
#   bash slurm/local-cluster.sh down [FOLDER]             ends what "up" started there, and nothing else
# Needs root and Debian's packages munge, slurmctld, slurmd and slurm-client. Every file lies in FOLDER,
# with a key and ports of its own, so several such clusters, and a munged of the machine's, can run at once.
set -euo pipefail
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
action=${1:-}
nodes=${NODES:-2}
folder=$(realpath -m "${2:-/tmp/mer-dist-slurm}")
# Slurm runs what lies in the folder, and munge trusts no path that others can write to.
[[ $folder =~ ^[A-Za-z0-9_./-]+$ ]] || { echo "FOLDER may hold letters, digits, _ . / and - only" >&2; exit 2; }

free_ports() {
  python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PYTHON
}

configure() {
  local host memory ctld ports port number
  host=$(hostname)
  memory=$(awk -v nodes="$nodes" '/MemTotal/ {print int($2 / 1024 / nodes)}' /proc/meminfo)
  read -r ctld ports <<<"$(free_ports $((nodes + 1)))"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=local
# Ports of trainings follow from job numbers, and another such cluster may run here.
FirstJobId=$((RANDOM % 30000 + 1))
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has run out, by default 120 s: from scontrol requeue to the
# new start it was 121 s with CRED_EXPIRE=120, and 5 s with 5.
AuthInfo=socket=$folder/munge.socket,cred_expire=${CRED_EXPIRE:-5}
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
# The nodes claim more cores than the machine has, so that several small jobs run side by side.
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=0
SchedulerType=sched/backfill
# The main scheduler looks once a minute by default, which is how long a requeued job would wait.
SchedulerParameters=sched_interval=1,sched_min_interval=200000,batch_sched_delay=0,bf_interval=2
KillWait=${KILL_WAIT:-60}
SlurmctldPort=$ctld
PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP
CONF
  number=0
  for port in $ports; do
    number=$((number + 1))
    echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=8 RealMemory=$memory"
  done >>"$folder/slurm.conf"
}

up() {
  local program number
  [ "$(id -u)" -eq 0 ] || { echo "a local Slurm needs root" >&2; exit 2; }
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install munge slurmctld slurmd slurm-client" >&2; exit 2; }
  done
  [ ! -e "$folder/munged.pid" ] || { echo "$folder has a cluster already; take it down first" >&2; exit 2; }
  mkdir -p "$folder/state"
  for number in $(seq "$nodes"); do mkdir -p "$folder/spool-n$number"; done
  chmod 755 "$folder"
  (umask 077; head -c 1024 /dev/urandom >"$folder/munge.key")
  configure
  # munged runs as root here like the rest: one machine, one user, and --force for paths below /tmp.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" </dev/null >&2
  export SLURM_CONF=$folder/slurm.conf
  setsid slurmctld -c </dev/null >&2
  for number in $(seq "$nodes"); do setsid slurmd -N "n$number" </dev/null >&2; done
  for _ in $(seq 60); do
    if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" -eq "$nodes" ]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  echo "the nodes did not come up; see $folder/*.log" >&2
  down
  exit 1
}

# Ends the process of a pid file, first kindly; only if it still is the program that wrote the file.
end() {
  local pid program=$2
  pid=$(cat "$1" 2>/dev/null) || return 0
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$program" ]; then
    kill "$pid"
    for _ in $(seq 50); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    if [ -e "/proc/$pid" ]; then kill -KILL "$pid"; fi
  fi
  rm -f "$1"
}

down() {
  local file
  # Jobs end first: their slurmstepd outlive slurmd.
  if [ -e "$folder/slurmctld.pid" ]; then
    SLURM_CONF=$folder/slurm.conf timeout 20 bash -c '
      scancel --signal=KILL --full --user=root --state=RUNNING 2>/dev/null; scancel --user=root 2>/dev/null
      for _ in $(seq 40); do [ -n "$(squeue -h 2>/dev/null)" ] || exit 0; sleep 0.25; done' || true
  fi
  for file in "$folder"/slurmd-*.pid; do end "$file" slurmd & done
  wait
  end "$folder/slurmctld.pid" slurmctld
  end "$folder/munged.pid" munged
}

case $action in
  up) up ;;
  down) down ;;
  *) usage ;;
esac
