// Package vmtests proves the claims of iotrace-bpf on its users' kernels: Debian's
// own kernels from 5.10 on, in QEMU, with the shipped binary and exact numbers. It
// needs the build tag vm, so a plain "go test ./..." boots nothing and does not
// count these tests as passed:
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
// -parallel sets the number of guests that run at once, by default one per processor.
//
// # How it works
//
// One test binary has two roles. On the host, a test boots one guest for each line of
// the matrix (matrix.go). In the guest the same test runs the scenarios. PID 1 and
// the processes that do I/O are a second, small program (worker). So a source's test
// is one file. It declares what its guests need and what happens in them, and needs
// no build step, no agent and no image of its own.
//
// A guest boots the kernel's own package from the machine's Debian mirror, as apt's
// configuration (or IOTRACE_VM_MIRROR) names it. A private apt fetches it, checks
// signatures and does not touch the machine's packages. Its root is an image of
// Debian packages (images.go), its modules are a second disk, and the programs come
// in an initramfs. A build changes only that; everything else stays in the user's
// cache directory (or IOTRACE_VM_CACHE). There is no network device. Results come
// back over a virtio-serial port. A suite may share directories of the host with
// its guest: a virtiofsd serves each one.
//
// Root images are unpacked and never run on the host, so images of other
// architectures are made in the same way.
//
// The guests of TestRuntimes and TestEngines are different: init becomes systemd
// (guest/systemd.go), and the tests run as a service, because engines and
// systemd-nspawn want the cgroups made by systemd. udev stays out: it would read the
// disks.
//
// # Writing scenarios
//
// The file is named after the source, like bpf/SOURCE.bpf.c and tracer/SOURCE.go:
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
//     mistaken for each other. Every total is compared with the kernel's or the server's
//     own count (diskstats, mountstats, the FUSE daemon).
//   - No test sleeps until something is ready: helpers wait for a condition, with a
//     bound. No test asserts a duration.
//   - A guest flushes nothing by itself (the flush interval is an hour), so dirty pages
//     stay until a scenario says Sync, Fsync or, on NFS and FUSE, closes the file. Use
//     HoldWriteback for more than a few MiB.
//   - A worker (Cgroup.Process) moves into its cgroup and executes itself again before it
//     touches memory, so all of its memory is charged there. It keeps files open
//     between calls.
//   - The scenarios of a suite share one guest with its memory, disks and modules. If a
//     helper does not clean up by itself, use Cleanup.
//   - Scenarios declare what a kernel cannot do (since, before, cgroup, with a why). They
//     never find it out and skip: a skip is a failure. The table of kernels in SUPPORT.md
//     shows the declarations, so they are promises to users.
//   - The tests' own process is in the cgroup /driver, so the root cgroup holds the kernel's
//     threads only.
//   - The guests have no udev, and no network but lo, unless the suite asks for a network card.
//     vm.HostAddress is then the host (TestOutput). The only block devices at the start are the
//     root (nvme0n1, discarded at the end), the modules, and the scratch disks of Guest.NVMe and
//     Guest.Virtio.
//   - Add packages to images.go (the image is rebuilt by itself), modules with Guest.Modprobe.
//
// # Verdicts
//
// A scenario has passed only if the guest reports it. A scenario that did not run, ended in
// the middle or was skipped has failed. The whole guest has failed if its kernel complained
// on the console (WARNING, BUG, Oops, stalls, hung tasks, file system errors), if it never
// reported its end, if it reported an unexpected test, or if it was killed at its deadline.
// There is one exception, and it is logged: a kernel that panics or hangs before the first
// test is booted again, up to twice, because QEMU's emulation sometimes kills kernels
// early. With RERUN=3, as in "make test", up to three guests with failures are rerun with
// all of their scenarios, and the second run decides. The first failures are logged and
// listed at the end of the run. A failure prints the scenario's output, the tracer's
// standard error (with the verifier's log, as the tracer runs with --verbose), the kernel's
// log and, where the guest itself was unwell, the console.
//
// # Why not a ready-made tool
//
// The alternatives are vimto, cilium/little-vm-helper, danobi/vmtest, virtme-ng,
// u-root's vmtest and mkosi.
//   - vimto is the closest: it runs "go test" binaries in QEMU. It takes kernels as OCI
//     images from a registry that builds with its own configuration, mounts the host's root
//     over 9p or virtiofs, and needs KVM. Debian's cloud kernels have no 9p, TCG is the only
//     way on machines without nested virtualisation, and the kernels under test must be
//     the distribution's, because users run those (fuse built in or not, cgroup v1 or not).
//   - vmtest and virtme-ng share the host's root over 9p or virtiofs too. Their guests then
//     depend on the host's packages, and a tracer of I/O would see the I/O of its own root.
//   - little-vm-helper needs Docker and its own kernel images.
//   - u-root's vmtest builds a u-root initramfs with Go commands only: no knfsd, mdadm, cryptsetup, dockerd.
//   - mkosi builds whole, installed distributions: minutes for each image, systemd in the
//     guest (its own I/O and cgroups would mix with the tests'), and one kernel per image.
//
// These tests use apt for kernels, mmdebstrap for root images, kmod's depmod, mke2fs -d, a
// cpio library, QEMU, and test2json for results.
package vmtests
