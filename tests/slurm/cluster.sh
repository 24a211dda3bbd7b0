#!/usr/bin/env bash
# Start or stop a real Slurm of two nodes on this machine, for tests: tests/slurm/cluster.sh up|down DIR
#
# Needs root and Debian's slurmctld, slurmd, slurm-client and munge. Each node says it has 6 cores,
# 160 GB and a GPU, which is /dev/null. There is no accounting database, as on small clusters. Jobs of
# the partition main send those of the partition spare back to the queue where they need its room.
# DIR holds its keys, logs and state; `export SLURM_CONF=DIR/etc/slurm.conf` to use it.
set -euo pipefail
action=$1 dir=$(realpath -m "$2")
host=$(hostname -s)

stop() {
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        if [[ -s $dir/run/$name.pid ]]; then kill "$(cat "$dir/run/$name.pid")" 2> /dev/null || true; fi
    done
    # With them, Snakemake's plugin would ask this Slurm at each start, and wait ten seconds.
    for name in slurm.conf gres.conf; do
        if [[ $(readlink "/etc/slurm/$name") == "$dir/etc/$name" ]]; then rm "/etc/slurm/$name"; fi
    done
}

if [[ $action == down ]]; then
    stop
    exit
fi

if [[ -f /etc/slurm/slurm.conf && ! -L /etc/slurm/slurm.conf ]]; then
    echo "this machine has a Slurm of its own: /etc/slurm/slurm.conf" >&2
    exit 1
fi

# A job that goes back to the queue waits there for cred_expire seconds, by default two minutes, and
# then for the scheduler, by default half a minute.
mkdir -p "$dir"/{etc,run,log,state,spool/n1,spool/n2}
for gpu in n1-gpu n2-gpu; do
    [[ -e $dir/run/$gpu ]] || mknod "$dir/run/$gpu" c 1 3
done
dd if=/dev/urandom of="$dir/run/munge.key" bs=1024 count=1 status=none
chmod 600 "$dir/run/munge.key"
cat > "$dir/etc/slurm.conf" << CONF
ClusterName=toy
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdSpoolDir=$dir/spool/%n
SlurmdParameters=config_overrides
StateSaveLocation=$dir/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=3600
MailProg=/bin/true
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26821 CPUs=6 RealMemory=160000 Gres=gpu:1
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=26822 CPUs=6 RealMemory=160000 Gres=gpu:1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=spare Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1
CONF
cat > "$dir/etc/gres.conf" << CONF
AutoDetect=off
NodeName=n1 Name=gpu File=$dir/run/n1-gpu
NodeName=n2 Name=gpu File=$dir/run/n2-gpu
CONF
# The executor of job steps drops SLURM_CONF, so the default place must lead here, too.
mkdir -p /etc/slurm
ln -sf "$dir/etc/slurm.conf" "$dir/etc/gres.conf" /etc/slurm/

munged --force --key-file="$dir/run/munge.key" --socket="$dir/run/munge.socket" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed"
slurmctld -c
for node in n1 n2; do slurmd -c -N "$node"; done
for _ in $(seq 60); do
    if [[ $(sinfo --noheader --states=idle --format=%D) == 2 ]]; then exit 0; fi
    sleep 0.5
done
echo "the two nodes are not idle after 30 seconds; see $dir/log" >&2
stop
exit 1
