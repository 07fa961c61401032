// Package vmtests proves what iotrace-bpf claims, on the kernels that its users
// run: Debian's own kernels from 5.10 on, in QEMU, with the shipped binary
// inside and exact numbers out. It needs the build tag vm, so that a plain
// "go test ./..." neither boots anything nor counts these tests as passed:
//
//	go test -tags vm ./vmtests                               everything
//	go test -tags vm ./vmtests -run TestNFS -args -kernel 6.12
//	go test -tags vm ./vmtests -run TestBlock -args -kernel 6.1-v1 -scenario overwrite
//	make vmtest KERNEL=6.12 RUN=nfs                          the same in short
//	make vmtest-shell KERNEL=7.3                             a shell in the guest, tracer in PATH
//	echo iotrace-bpf check | make vmtest-shell               the same with commands from a pipe
//	make vmtest-arm64                                        the scenarios on arm64
//	make support                                             rewrites SUPPORT.md
//
// As many guests run at once as -parallel says, one for each processor by default.
//
// # How it works
//
// One test binary has two lives. On the host, a test boots one guest for each
// line of the matrix (matrix.go). In the guest it is the same test again, which
// there runs the scenarios. PID 1 and the processes that do I/O are a second, small
// program (worker). So a source's test is one file that says what its guests need and
// what happens in them, and needs no build step, no agent and no image of its own.
//
// A guest boots the kernel's own package from the machine's Debian mirror, which
// is read from apt's configuration (or IOTRACE_VM_MIRROR), with a private apt, so
// that signatures are checked and the machine's packages are left alone. Its root
// is an image of Debian packages (images.go), its modules are a second disk, and
// the programs come in an initramfs, the only part that a build changes.
// Everything else is kept in the user's cache directory (or IOTRACE_VM_CACHE).
// There is no network device. Results come back over a virtio-serial port. A suite
// may share directories of the host with its guest: a virtiofsd serves each one.
//
// Root images are unpacked and never run on the host, so those of another
// architecture are made in the same way.
//
// The guest of TestRuntimes is another one: its image has systemd, which init
// becomes (guest/systemd.go), and the tests are a service of it, because engines
// and systemd-nspawn want the cgroups made by systemd. udev stays out: it would
// read the disks.
//
// # Writing scenarios
//
// The file is called after the source, as bpf/SOURCE.bpf.c and tracer/SOURCE.go are:
//
//	//go:build vm
//
//	package vmtests
//
//	func TestNFS(t *testing.T) {
//		suite{
//			source: "nfs",
//			memory: 1200,
//			scenarios: []scenario{
//				{name: "delayed", run: nfsDelayed, smoke: true},
//				{name: "splice", run: nfsSplice, since: "6.12", why: "no nfs_file_splice_read before"},
//			},
//		}.test(t)
//	}
//
//	func nfsDelayed(g *guest.Guest) {
//		m := g.NFS("4.2")                         // server, export, mount
//		a, b := g.Cgroup("a"), g.Cgroup("b")
//		tr := g.Trace("--by", "cgroup", "--source", "nfs") // returns once it is attached
//		fa := a.Process().Open(m.File("fa"), guest.Create)
//		fa.Write(0, 5_000_011)                    // stays in the page cache ...
//		fb := b.Process().Open(m.File("fb"), guest.Create)
//		fb.Write(0, 3_000_017)
//		g.Sync()                                  // ... until now; files are open still
//		r := tr.Stop()
//		r.Equal("a", r.Written("nfs", m.ID(), a), 5_000_011)
//		r.Equal("b", r.Written("nfs", m.ID(), b), 3_000_017)
//		r.Equal("wire", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), m.Stats().Sub(before).ServerWrite)
//	}
//
// Rules:
//   - Numbers are exact and prime, or at least odd, so that no two of them can be
//     mistaken for each other, and every total is compared with a count of the kernel's
//     or the server's own (diskstats, mountstats, the FUSE daemon).
//   - Nothing sleeps to be ready: helpers wait for a condition, with a bound. Nothing
//     asserts how long anything takes.
//   - A guest flushes nothing by itself (the flush interval is an hour), so dirty pages
//     stay until a scenario says Sync, Fsync or, on NFS and FUSE, closes the file. Use
//     HoldWriteback for more than a few MiB.
//   - A worker (Cgroup.Process) moves into its cgroup and executes itself again before it
//     touches memory, so everything it allocates is charged there. It keeps files open
//     between calls.
//   - A guest's memory, disks and modules are its own, but scenarios of a suite share it:
//     clean up with Cleanup whatever a helper does not clean up itself.
//   - What a kernel cannot do is declared (since, before, cgroup, with a why), never
//     found out and skipped: a skip is a failure. The declarations end up in the table
//     of kernels in SUPPORT.md, so they are promises to users.
//   - The tests' own process sits in the cgroup /driver, so the root cgroup is the kernel's threads.
//   - The guests have no udev and no network but lo, unless the suite asks for a card, behind
//     which vm.HostAddress is the host (TestOutput); the only block devices at the start are the
//     root (nvme0n1, throw-away), the modules, and the scratch disks of Guest.NVMe and Guest.Virtio.
//   - Add packages to images.go (the image is rebuilt by itself), modules with Guest.Modprobe.
//
// # Verdicts
//
// A scenario has passed only if the guest said so. Scenarios that did not run, ended in
// the middle or were skipped have failed; so has the whole guest when its kernel
// complained on the console (WARNING, BUG, Oops, stalls, hung tasks, file system errors),
// when it never reported its end, reported a test nobody asked for, or had to be killed
// at its deadline. One exception is made, and logged: a kernel that panics or hangs before
// the first test began is booted again, up to twice, because QEMU's emulation is known to kill
// some kernels early. With AGAIN=3, as in "make test", three guests of a run in which
// something failed are run a second time, whole, and what fails then has failed: what
// failed at first is logged and listed at the end of the run. A failure prints the
// scenario's output, the tracer's standard error (with the verifier's log, as the tracer
// runs with --verbose), the kernel's log and, where the guest itself was unwell, the
// console.
//
// # Why not a ready-made tool
//
// Looked at first were vimto and cilium/little-vm-helper, danobi/vmtest, virtme-ng,
// u-root's vmtest and mkosi.
//   - vimto is the closest: it runs "go test" binaries in QEMU. It takes kernels as OCI
//     images from a registry that builds with its own configuration, mounts the host's root
//     over 9p or virtiofs, and needs KVM. Debian's cloud kernels have no 9p, TCG is the only
//     way on machines without nested virtualisation, and the kernels under test have to be
//     the distribution's, because users run those (fuse built in or not, cgroup v1 or not).
//   - vmtest and virtme-ng share the host's root over 9p or virtiofs too. Their guests then
//     depend on what is installed on the host; a tracer of I/O would also see that of its own root.
//   - little-vm-helper needs Docker and its own kernel images.
//   - u-root's vmtest builds a u-root initramfs with Go commands only: no knfsd, mdadm, cryptsetup, dockerd.
//   - mkosi builds whole, installed distributions: minutes for each image, systemd in the
//     guest (whose own I/O and cgroups would stand beside the tests'), and one kernel per image.
//
// What is used of the field: apt for kernels, mmdebstrap for root images, kmod's depmod, mke2fs -d,
// a cpio library, QEMU, and test2json for results.
package vmtests
