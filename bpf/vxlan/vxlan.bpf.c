// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * What happens to vxlan devices, and which one could not be made.
 *
 * Every change of a network device goes through call_netdevice_notifiers_info:
 * registering, unregistering, moving to another network namespace (an
 * unregistering of a device that stays registered, followed by a registering),
 * renaming, UP and DOWN, and what the death of a namespace does to its devices.
 * It is static, but not inlined on any kernel from 5.10 to 7.3. For a kernel that
 * inlines it there are register_netdevice, unregister_netdevice_queue and
 * __dev_change_net_namespace (dev_change_net_namespace up to 5.11): they see the same
 * except renames, UP and DOWN.
 *
 * rtnl_newlink sees both refusals: that of a name that exists in the namespace, where
 * no code of vxlan runs, and that of a VNI that is taken.
 *
 * __dev_change_flags sees a device that cannot be set UP, because its UDP port is taken:
 * the port belongs to the first socket, and an "external" device shares its own with none.
 *
 * All of these are part of vmlinux: the vxlan module need not be loaded, and may be
 * loaded and unloaded at any time.
 */
#include "core/types.h"
#include "core/page.h"
#include "core/arch.h"

const volatile __u32 hierarchy_id = 0; /* the hierarchy that names cgroups: 0 is cgroup2 */

#define EEXIST 17

/* include/linux/netdevice.h: enum netdev_cmd; UP to UNREGISTER are the same since 2.6, CHANGENAME since 4.17. */
#define NETDEV_UP 1
#define NETDEV_DOWN 2
#define NETDEV_REGISTER 5
#define NETDEV_UNREGISTER 6
#define NETDEV_CHANGENAME 11

#define NETREG_REGISTERED 1 /* net_device.reg_state: still registered, so it moves */

#define IOT_NAME_MAX 16 /* IFNAMSIZ and TASK_COMM_LEN */
#define IOT_REQUEST_MAX 1024
/* Two nested loops of this many rounds: 529 vxlan devices of a namespace are searched for a VNI. */
#define IOT_WALK_ROUNDS 23

enum iot_device_action {
	IOT_DEVICE_CREATED = 1,
	IOT_DEVICE_MOVED = 2,
	IOT_DEVICE_DELETED = 3,
	IOT_DEVICE_RENAMED = 4,
	IOT_DEVICE_UP = 5,
	IOT_DEVICE_DOWN = 6,
	IOT_DEVICE_REFUSED = 7, /* a struct refusal */
	IOT_DEVICE_MESSAGE = 8, /* a struct refusal with only the kernel's message, in request */
	IOT_DEVICE_UP_REFUSED = 9,
};

struct iface {
	__u32 ifindex;
	__u32 netns; /* inode number */
	__u32 underlay; /* inode number of the namespace that the packets travel in; 0 unknown */
	__u32 vni; /* 0 unknown or several */
	__u32 flags; /* IFF_... */
	__u32 port; /* 0 unknown */
	char name[IOT_NAME_MAX];
};

struct device_event {
	enum iot_device_action action;
	__u32 pid;
	__u64 time;
	__u64 cgroup;
	struct iface device; /* for a move: where it was */
	__u32 to_netns;
	__u32 to_ifindex;
	char old_name[IOT_NAME_MAX];
	char comm[IOT_NAME_MAX];
	__s32 error; /* of a device that could not be set UP: -EADDRINUSE ... */
	__u32 unused;
};

struct refusal {
	struct device_event event; /* device has only the namespace of the task that asked */
	struct iface holder; /* of the VNI, where it could be found */
	__u32 vni; /* that the request asked for */
	__u32 len; /* of request */
	__u8 request[IOT_REQUEST_MAX]; /* from the nlmsghdr on */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct device_event);
} device_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} device_losses SEC(".maps");

/* Address of vxlan_net_id, the index of the module's data in each namespace; 0 while it is not loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} module_data SEC(".maps");

/* Where a device was before the move that is in progress. */
struct departure {
	__u32 netns;
	__u32 ifindex;
	char name[IOT_NAME_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* struct net_device * */
	__type(value, struct departure);
} departures SEC(".maps");

/* Arguments from a kprobe to its kretprobe. */
struct call {
	__u64 first;
	__u64 second;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* pid << 32 | tid, and which function */
	__type(value, struct call);
} calls SEC(".maps");

/* Too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct refusal);
} draft SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_generic;

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	struct net_generic *gen;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct rtnl_link_ops {
	const char *kind;
};

struct net_device {
	char name[IOT_NAME_MAX];
	int ifindex;
	unsigned int flags;
	possible_net_t nd_net;
	const struct rtnl_link_ops *rtnl_link_ops;
};

/* reg_state was a bit field of an anonymous enum ... */
struct net_device___5_10 {
	enum {
		IOT_NETREG_UNINITIALIZED = 0,
	} reg_state : 8;
};

/* ... and is a plain byte since 6.1 at the latest: an int and an enum do not match in CO-RE. */
struct net_device___6_1 {
	__u8 reg_state;
};

struct netdev_notifier_info {
	struct net_device *dev;
};

struct nlmsghdr {
	__u32 nlmsg_len;
};

struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct sk_buff {
	struct sock *sk;
};

/* Types of the vxlan module: it has type information only while it is loaded, and none before 5.11. */
struct vxlan_rdst {
	__be32 remote_vni;
};

struct vxlan_config___module {
	__be16 dst_port;
};

struct vxlan_dev {
	struct list_head next;
	struct net_device *dev;
	struct net *net;
	struct vxlan_rdst default_dst;
};

struct vxlan_dev___module {
	struct vxlan_config___module cfg;
};

struct vxlan_net {
	struct list_head vxlan_list;
};

#pragma clang attribute pop

/*
 * Offsets in struct vxlan_dev where there is no type information: the same on 5.10,
 * 6.1, 6.12, 6.17, 7.2 and 7.3. That of the port differs, so it stays unknown.
 */
#define VXLAN_NEXT 48
#define VXLAN_DEV 80
#define VXLAN_NET 88
#define VXLAN_VNI 128

static __always_inline void *iot_read_pointer(const void *at)
{
	void *value = NULL;

	bpf_probe_read_kernel(&value, sizeof(value), at);
	return value;
}

/* The private data of a device follows it, at a multiple of NETDEV_ALIGN (32). */
static __always_inline void *iot_vxlan(const struct net_device *dev)
{
	return (void *)dev + ((bpf_core_type_size(struct net_device) + 31) & ~31ULL);
}

static __always_inline __u32 iot_vxlan_vni(const void *vxlan)
{
	__u64 offset = VXLAN_VNI;
	__be32 vni = 0;

	if (bpf_core_type_exists(struct vxlan_dev))
		offset = bpf_core_field_offset(struct vxlan_dev, default_dst.remote_vni);
	bpf_probe_read_kernel(&vni, sizeof(vni), vxlan + offset);
	return __builtin_bswap32(vni);
}

static __always_inline struct net *iot_vxlan_net(const void *vxlan)
{
	__u64 offset = VXLAN_NET;

	if (bpf_core_type_exists(struct vxlan_dev))
		offset = bpf_core_field_offset(struct vxlan_dev, net);
	return iot_read_pointer(vxlan + offset);
}

static __always_inline __u32 iot_vxlan_port(const void *vxlan)
{
	const struct vxlan_dev___module *v = vxlan;

	if (!bpf_core_field_exists(v->cfg.dst_port))
		return 0;
	return __builtin_bswap16(FIELD(v, cfg.dst_port));
}

static __always_inline __u32 iot_netns(const struct net_device *dev)
{
	return BPF_CORE_READ(dev, nd_net.net, ns.inum);
}

static __always_inline bool iot_is_vxlan(const struct net_device *dev)
{
	const char *kind = BPF_CORE_READ(dev, rtnl_link_ops, kind);
	char text[8] = {};

	if (!kind)
		return false;
	bpf_probe_read_kernel_str(text, sizeof(text), kind);
	return text[0] == 'v' && text[1] == 'x' && text[2] == 'l' && text[3] == 'a' && text[4] == 'n' && !text[5];
}

static __always_inline bool iot_is_moving(const struct net_device *dev)
{
	const struct net_device___5_10 *old = (const void *)dev;
	const struct net_device___6_1 *now = (const void *)dev;

	if (bpf_core_field_exists(now->reg_state))
		return FIELD(now, reg_state) == NETREG_REGISTERED;
	return BPF_CORE_READ_BITFIELD_PROBED(old, reg_state) == NETREG_REGISTERED;
}

static __always_inline void iot_describe(struct iface *d, const struct net_device *dev)
{
	void *vxlan = iot_vxlan(dev);

	d->ifindex = FIELD(dev, ifindex);
	d->flags = FIELD(dev, flags);
	d->netns = iot_netns(dev);
	d->underlay = BPF_CORE_READ(iot_vxlan_net(vxlan), ns.inum);
	d->vni = iot_vxlan_vni(vxlan);
	d->port = iot_vxlan_port(vxlan);
	bpf_probe_read_kernel_str(d->name, sizeof(d->name), &dev->name);
}

static __always_inline void iot_device_lost(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&device_losses, &zero);

	if (count)
		*count += 1;
}

static __always_inline __u64 iot_device_cgroup(struct task_struct *task)
{
	struct css_set *set = FIELD(task, cgroups);
	struct cgroup_subsys_state *css;

	if (!hierarchy_id)
		return BPF_CORE_READ(set, dfl_cgrp, kn, id);
	css = iot_read_pointer((void *)set + bpf_core_field_offset(struct css_set, subsys) +
			       bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) * sizeof(css));
	return BPF_CORE_READ(css, cgroup, kn, id);
}

static __always_inline void iot_start_event(struct device_event *e, __u32 action)
{
	e->action = action;
	e->time = bpf_ktime_get_ns();
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->cgroup = iot_device_cgroup((void *)bpf_get_current_task());
	bpf_get_current_comm(e->comm, sizeof(e->comm));
}

static __always_inline void iot_tell_error(const struct net_device *dev, __u32 action, const struct departure *from, int error)
{
	struct device_event *e = bpf_ringbuf_reserve(&device_events, sizeof(*e), 0);

	if (!e) {
		iot_device_lost();
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	iot_start_event(e, action);
	iot_describe(&e->device, dev);
	e->error = error;
	if (from) {
		e->to_netns = e->device.netns;
		e->to_ifindex = e->device.ifindex;
		e->device.netns = from->netns;
		e->device.ifindex = from->ifindex;
		__builtin_memcpy(e->old_name, from->name, sizeof(e->old_name));
	}
	bpf_ringbuf_submit(e, 0);
}

static __always_inline void iot_tell(const struct net_device *dev, __u32 action, const struct departure *from)
{
	iot_tell_error(dev, action, from, 0);
}

static __always_inline void iot_departs(const struct net_device *dev)
{
	struct departure from = {};
	__u64 key = (__u64)dev;

	from.netns = iot_netns(dev);
	from.ifindex = FIELD(dev, ifindex);
	bpf_probe_read_kernel_str(from.name, sizeof(from.name), &dev->name);
	bpf_map_update_elem(&departures, &key, &from, BPF_ANY);
}

/* Reports the move that iot_departs saw begin; false when there was none. */
static __always_inline bool iot_arrives(const struct net_device *dev)
{
	__u64 key = (__u64)dev;
	struct departure *from = bpf_map_lookup_elem(&departures, &key);

	if (!from)
		return false;
	iot_tell(dev, IOT_DEVICE_MOVED, from);
	bpf_map_delete_elem(&departures, &key);
	return true;
}

static __always_inline int iot_notified(__u64 what, const struct netdev_notifier_info *info)
{
	const struct net_device *dev;

	if (what != NETDEV_REGISTER && what != NETDEV_UNREGISTER && what != NETDEV_CHANGENAME && what != NETDEV_UP &&
	    what != NETDEV_DOWN)
		return 0;
	dev = FIELD(info, dev);
	if (!iot_is_vxlan(dev))
		return 0;
	if (what == NETDEV_REGISTER) {
		if (!iot_arrives(dev))
			iot_tell(dev, IOT_DEVICE_CREATED, NULL);
	} else if (what == NETDEV_UNREGISTER) {
		if (iot_is_moving(dev))
			iot_departs(dev);
		else
			iot_tell(dev, IOT_DEVICE_DELETED, NULL);
	} else if (what == NETDEV_CHANGENAME) {
		iot_tell(dev, IOT_DEVICE_RENAMED, NULL);
	} else {
		iot_tell(dev, what == NETDEV_UP ? IOT_DEVICE_UP : IOT_DEVICE_DOWN, NULL);
	}
	return 0;
}

/* The functions whose arguments are stored from entry to return: one map serves all. */
enum iot_function {
	IOT_REGISTER = 1,
	IOT_CHANGE_NETNS = 2,
	IOT_NEWLINK = 3,
	IOT_FLAGS = 4,
};

static __always_inline __u64 iot_call_key(__u32 function)
{
	return bpf_get_current_pid_tgid() ^ ((__u64)function << 60);
}

static __always_inline int iot_enter(__u32 function, __u64 first, __u64 second)
{
	struct call call = { .first = first, .second = second };
	__u64 key = iot_call_key(function);

	if (bpf_map_update_elem(&calls, &key, &call, BPF_ANY))
		iot_device_lost();
	return 0;
}

static __always_inline bool iot_leave(__u32 function, struct call *call)
{
	__u64 key = iot_call_key(function);
	struct call *found = bpf_map_lookup_elem(&calls, &key);

	if (!found)
		return false;
	*call = *found;
	bpf_map_delete_elem(&calls, &key);
	return true;
}

static __always_inline int iot_registered(const struct net_device *dev, int result)
{
	if (!result && iot_is_vxlan(dev))
		iot_tell(dev, IOT_DEVICE_CREATED, NULL);
	return 0;
}

static __always_inline int iot_unregisters(const struct net_device *dev)
{
	if (iot_is_vxlan(dev))
		iot_tell(dev, IOT_DEVICE_DELETED, NULL);
	return 0;
}

#define IFF_UP 1 /* include/uapi/linux/if.h */

static __always_inline int iot_changed_flags(const struct net_device *dev, __u32 flags, int result)
{
	if (result < 0 && (flags & IFF_UP) && iot_is_vxlan(dev))
		iot_tell_error(dev, IOT_DEVICE_UP_REFUSED, NULL, result);
	return 0;
}

static __always_inline int iot_changes_netns(const struct net_device *dev)
{
	if (iot_is_vxlan(dev))
		iot_departs(dev);
	return 0;
}

static __always_inline int iot_changed_netns(const struct net_device *dev, int result)
{
	__u64 key = (__u64)dev;

	if (!result)
		iot_arrives(dev);
	else
		bpf_map_delete_elem(&departures, &key);
	return 0;
}

/* Attributes of the request, include/uapi/linux/if_link.h. */
#define IFLA_LINKINFO 18
#define IFLA_INFO_DATA 2
#define IFLA_VXLAN_ID 1
#define NLA_TYPE_MASK 0x3fff
#define NLA_HEADER 4
#define REQUEST_HEADERS 32 /* nlmsghdr, ifinfomsg */
#define ATTRIBUTES_MAX 48

struct attribute {
	__u16 len;
	__u16 type;
};

/*
 * Finds an attribute in [at, end) of the request; 0 when there is none, else where it
 * begins, and its length in the upper half. Global, as the loops below are: the
 * verifier looks at such a function once.
 */
__noinline __u64 iot_attribute(__u64 request, __u32 at, __u32 end, __u32 type)
{
	struct attribute a = {};
	int i;

	for (i = 0; i < ATTRIBUTES_MAX; i++) {
		if (at + NLA_HEADER > end || bpf_probe_read_kernel(&a, sizeof(a), (void *)request + at) ||
		    a.len < NLA_HEADER)
			return 0;
		if ((a.type & NLA_TYPE_MASK) == type)
			return (__u64)(a.len - NLA_HEADER) << 32 | (at + NLA_HEADER);
		at += (a.len + 3) & ~3;
	}
	return 0;
}

static __always_inline __u32 iot_requested_vni(const void *request, __u32 end)
{
	__u64 in = (__u64)(end - REQUEST_HEADERS) << 32 | REQUEST_HEADERS;
	__u32 vni = 0;

	in = iot_attribute((__u64)request, in, (__u32)in + (in >> 32), IFLA_LINKINFO);
	if (in)
		in = iot_attribute((__u64)request, in, (__u32)in + (in >> 32), IFLA_INFO_DATA);
	if (in)
		in = iot_attribute((__u64)request, in, (__u32)in + (in >> 32), IFLA_VXLAN_ID);
	if (in >> 32 < sizeof(vni))
		return 0;
	bpf_probe_read_kernel(&vni, sizeof(vni), (const void *)request + (__u32)in);
	return vni;
}

/* The device of an element of the list of vxlan devices. */
static __always_inline const struct net_device *iot_listed(__u64 at, void **vxlan)
{
	__u64 next_offset = VXLAN_NEXT, dev_offset = VXLAN_DEV;

	if (bpf_core_type_exists(struct vxlan_dev)) {
		next_offset = bpf_core_field_offset(struct vxlan_dev, next);
		dev_offset = bpf_core_field_offset(struct vxlan_dev, dev);
	}
	*vxlan = (void *)at - next_offset;
	return iot_read_pointer(*vxlan + dev_offset);
}

#define IOT_FOUND 1ULL

/* The element if its device has the VNI, with IOT_FOUND set; else the next one, 0 at the end. */
__noinline __u64 iot_holder_step(__u64 at, __u64 head, __u32 vni)
{
	const struct net_device *dev;
	void *vxlan;

	if (at == head)
		return 0;
	dev = iot_listed(at, &vxlan);
	if (iot_vxlan_vni(vxlan) == vni && dev && iot_is_vxlan(dev))
		return at | IOT_FOUND;
	return (__u64)iot_read_pointer((void *)at);
}

__noinline __u64 iot_holder_steps(__u64 at, __u64 head, __u32 vni)
{
	int i;

	for (i = 0; i < IOT_WALK_ROUNDS && at && !(at & IOT_FOUND); i++)
		at = iot_holder_step(at, head, vni);
	return at;
}

/*
 * Finds the device that holds a VNI in the list of those made in the namespace. The
 * device may be in another namespace by now, to which no path leads.
 */
static __always_inline void iot_find_holder(struct iface *holder, struct net *net, __u32 vni)
{
	__u64 *id_at, at;
	void *data, *head, *vxlan;
	__u32 zero = 0, id = 0;
	int i;

	id_at = bpf_map_lookup_elem(&module_data, &zero);
	if (!id_at || !*id_at || bpf_probe_read_kernel(&id, sizeof(id), (void *)*id_at))
		return;
	data = iot_read_pointer((void *)FIELD(net, gen) + (__u64)id * sizeof(void *));
	if (!data)
		return;
	head = data; /* vxlan_list is the first member of struct vxlan_net */
	if (bpf_core_type_exists(struct vxlan_net))
		head = data + bpf_core_field_offset(struct vxlan_net, vxlan_list);
	at = (__u64)iot_read_pointer(head);
	for (i = 0; i < IOT_WALK_ROUNDS && at && !(at & IOT_FOUND); i++)
		at = iot_holder_steps(at, (__u64)head, vni);
	if (at & IOT_FOUND)
		iot_describe(holder, iot_listed(at & ~IOT_FOUND, &vxlan));
}

static __always_inline struct refusal *iot_new_refusal(__u32 action)
{
	__u32 zero = 0;
	struct refusal *r = bpf_map_lookup_elem(&draft, &zero);

	if (!r)
		return NULL;
	__builtin_memset(&r->event, 0, sizeof(r->event));
	__builtin_memset(&r->holder, 0, sizeof(r->holder));
	r->vni = 0;
	r->len = 0;
	iot_start_event(&r->event, action);
	return r;
}

static __always_inline int iot_newlink(const struct sk_buff *skb, const struct nlmsghdr *request, long result)
{
	struct refusal *r;
	struct net *net;
	__u32 len;

	if ((int)result != -EEXIST)
		return 0;
	r = iot_new_refusal(IOT_DEVICE_REFUSED);
	if (!r)
		return 0;
	net = BPF_CORE_READ(skb, sk, __sk_common.skc_net.net);
	r->event.device.netns = BPF_CORE_READ(net, ns.inum);
	len = FIELD(request, nlmsg_len);
	r->vni = iot_requested_vni(request, len);
	if (r->vni)
		iot_find_holder(&r->holder, net, r->vni);
	if (len > IOT_REQUEST_MAX)
		len = IOT_REQUEST_MAX;
	if (!bpf_probe_read_kernel(r->request, len, request))
		r->len = len;
	if (bpf_ringbuf_output(&device_events, r, sizeof(*r), 0))
		iot_device_lost();
	return 0;
}

/* The kernel's message for a refused VNI: all that a host without kprobes has. */
static __always_inline int iot_extack(const char *message)
{
	struct refusal *r = iot_new_refusal(IOT_DEVICE_MESSAGE);
	long len;

	if (!r)
		return 0;
	len = bpf_probe_read_kernel_str(r->request, 128, message);
	if (len < 8 || r->request[0] != 'A' || r->request[1] != ' ' || r->request[2] != 'V' ||
	    r->request[3] != 'X' || r->request[4] != 'L' || r->request[5] != 'A' || r->request[6] != 'N')
		return 0;
	r->len = len;
	if (bpf_ringbuf_output(&device_events, r, sizeof(*r), 0))
		iot_device_lost();
	return 0;
}

SEC("fentry/call_netdevice_notifiers_info")
int iot_notify_fentry(__u64 *ctx)
{
	return iot_notified(ctx[0], (const void *)ctx[1]);
}

SEC("kprobe/call_netdevice_notifiers_info")
int iot_notify_kprobe(void *ctx)
{
	return iot_notified(IOT_PARM1(ctx), (const void *)IOT_PARM2(ctx));
}

SEC("fexit/register_netdevice")
int iot_register_fexit(__u64 *ctx)
{
	return iot_registered((const void *)ctx[0], ctx[1]);
}

SEC("kprobe/register_netdevice")
int iot_register_kprobe(void *ctx)
{
	return iot_enter(IOT_REGISTER, IOT_PARM1(ctx), 0);
}

SEC("kretprobe/register_netdevice")
int iot_register_return(void *ctx)
{
	struct call call;

	return iot_leave(IOT_REGISTER, &call) ? iot_registered((const void *)call.first, IOT_RESULT(ctx)) : 0;
}

SEC("fentry/unregister_netdevice_queue")
int iot_unregister_fentry(__u64 *ctx)
{
	return iot_unregisters((const void *)ctx[0]);
}

SEC("kprobe/unregister_netdevice_queue")
int iot_unregister_kprobe(void *ctx)
{
	return iot_unregisters((const void *)IOT_PARM1(ctx));
}

SEC("kprobe/__dev_change_net_namespace")
int iot_netns_kprobe(void *ctx)
{
	iot_enter(IOT_CHANGE_NETNS, IOT_PARM1(ctx), 0);
	return iot_changes_netns((const void *)IOT_PARM1(ctx));
}

SEC("kretprobe/__dev_change_net_namespace")
int iot_netns_return(void *ctx)
{
	struct call call;

	return iot_leave(IOT_CHANGE_NETNS, &call) ? iot_changed_netns((const void *)call.first, IOT_RESULT(ctx)) : 0;
}

SEC("fexit/rtnl_newlink")
int iot_newlink_fexit(__u64 *ctx)
{
	return iot_newlink((const void *)iot_arg(ctx, 0), (const void *)iot_arg(ctx, 1), ctx[3]);
}

SEC("kprobe/rtnl_newlink")
int iot_newlink_kprobe(void *ctx)
{
	return iot_enter(IOT_NEWLINK, IOT_PARM1(ctx), IOT_PARM2(ctx));
}

SEC("kretprobe/rtnl_newlink")
int iot_newlink_return(void *ctx)
{
	struct call call;

	return iot_leave(IOT_NEWLINK, &call) ? iot_newlink((const void *)call.first, (const void *)call.second,
							   IOT_RESULT(ctx)) : 0;
}

SEC("fexit/__dev_change_flags")
int iot_flags_fexit(__u64 *ctx)
{
	return iot_changed_flags((const void *)ctx[0], ctx[1], ctx[3]);
}

SEC("kprobe/__dev_change_flags")
int iot_flags_kprobe(void *ctx)
{
	return iot_enter(IOT_FLAGS, IOT_PARM1(ctx), IOT_PARM2(ctx));
}

SEC("kretprobe/__dev_change_flags")
int iot_flags_return(void *ctx)
{
	struct call call;

	return iot_leave(IOT_FLAGS, &call) ? iot_changed_flags((const void *)call.first, call.second, IOT_RESULT(ctx)) : 0;
}

SEC("raw_tp/netlink_extack")
int iot_netlink_extack(__u64 *ctx)
{
	return iot_extack((const char *)ctx[0]);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
