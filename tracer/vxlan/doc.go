// Package vxlan follows the vxlan devices of overlay networks through network
// namespaces. It tells who created, moved or deleted one, which one stayed behind in
// the host's namespace, and which one is in the way when another cannot be created.
//
// A Docker Swarm overlay network has one vxlan device per subnet and host. The
// engine makes it in the host's namespace under a name like vx-001001-m64nq
// (VNI in hex, first characters of the network's id), moves it into the
// overlay's own namespace and names it vxlan0 there. When the last container of
// the network stops, the device comes back and is deleted. If the deletion fails, the
// device is leaked: it holds its name and its VNI, and every further start of a
// container in that network fails with "file exists".
//
// All these devices share one UDP socket of the kernel. If something else has the port, an
// "external" device or a process, each can be made and none set UP ("failed to set link up:
// address already in use"): the device stays DOWN, in its namespace or back in the host's.
//
// Events come from programs in the kernel (Watcher, with bpf/vxlan/vxlan.bpf.c), or
// from rtnetlink notifications where the kernel allows no hooks. A Model keeps
// the state of every device and Judge gives a verdict on each. An Observer watches for
// long enough to be sure of the verdict, and deletes what is certainly leaked.
//
// No handle on a namespace other than the host's is kept for longer than it takes to
// list its devices: a held namespace does not die, and its devices would go on blocking
// their VNIs.
package vxlan
