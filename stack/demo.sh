#!/bin/sh
# `make demo`: servers, set-up, producer, consumer, test_cdc.py; then stop what it started.
# $1: the Python of the virtual environment. Exits with test_cdc.py's status.
set -eu
python=$1
logs=stack/.state
mkdir -p "$logs"
rm -f "$logs"/demo-*.log

ran_before=no
if "$python" stack/servers.py status >/dev/null 2>&1; then ran_before=yes; fi

pids=
producer_lines=0 # of its log, before the test that is shown
consumer_lines=0
print_log() { # script, lines to leave out
    [ -s "$logs/demo-$1.log" ] || return 0
    printf '\n%s.py said:\n' "$1"
    tail -n "+$(($2 + 1))" "$logs/demo-$1.log"
}
clean_up() {
    status=$?
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    print_log producer "$producer_lines"
    print_log consumer "$consumer_lines"
    [ "$status" = 0 ] || printf '\nmake demo failed; the logs: %s/demo-*.log\n' "$logs" >&2
    [ "$ran_before" = yes ] || "$python" stack/servers.py down || true
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

"$python" stack/servers.py up --brief
"$python" db_setup.py
"$python" admin.py
for script in producer consumer; do
    "$python" $script.py >"$logs/demo-$script.log" 2>&1 &
    pids="$pids $!"
done
# Once unshown: the first change through a Kafka that has just started takes a second.
"$python" test_cdc.py >"$logs/demo-first-test.log" 2>&1 || { cat "$logs/demo-first-test.log" && exit 1; }
producer_lines=$(wc -l <"$logs/demo-producer.log")
consumer_lines=$(wc -l <"$logs/demo-consumer.log")
"$python" test_cdc.py
