#!/usr/bin/env bash
# The demo of the README: boots a nested guest, stops in it with stock gdb, and
# cleans up. Not interactive; exit status 0 means that everything shown worked.
set -euo pipefail
cd "$(dirname "$0")/.."

nestdbg=bin/nestdbg
name=demo-$$
out=$(mktemp)
cleanup() { "$nestdbg" lab down "$name" >/dev/null 2>&1 || true; rm -f "$out"; }
trap cleanup EXIT

echo "--- A machine with KVM in it (L1), and a virtual machine in that (L2)"
# QEMU 7.2 loses a boot now and then on a busy host: once more, then.
up() { "$nestdbg" lab up --name "$name" --cpus 1; }
up || { "$nestdbg" lab down "$name"; up; }
symbols=$("$nestdbg" lab symbols "$name")
qmp=$("$nestdbg" lab list | awk -v name="$name" '$1 == name { print $NF }')

echo; echo "--- nestdbg status: looks at the running machine, needs no gdb"
"$nestdbg" -t "$qmp" status

echo; echo "--- nestdbg gdb"
"$nestdbg" -t "$qmp" --symbols "$symbols" gdb -- -batch -x lab/demo.gdb 2>&1 | tee "$out"

# The transcript must hold what it promises.
for want in \
	'#0 .*do_sys_openat2' \
	'do_syscall_64' \
	'#0 .*__svm_vcpu_run' \
	'kvm_arch_vcpu_ioctl_run' \
	'release, *"|= "[0-9]+\.[0-9]+' \
	'=> 0x[0-9a-f]+ <do_sys_openat2\+[0-9]+>' \
	'stage 2 npt'; do
	grep -Eq -- "$want" "$out" || { echo "demo: missing from the transcript: $want" >&2; exit 1; }
done
echo; echo "--- The guests run on, and the lab is taken down"
