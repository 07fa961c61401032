/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the NFS client and sunrpc keep of a request. */
#ifndef IOTRACE_NFS_TYPES_H
#define IOTRACE_NFS_TYPES_H

#include "core/page.h"
#include "core/types.h"

const volatile bool fixed_nfs_page = false; /* struct nfs_page is in no type information (5.10): see iot_read_page */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct nfs_lock_context {
	void *lockowner; /* struct files_struct * */
};

struct nfs_page {
	struct list_head wb_list;
	struct page *wb_page;
	struct nfs_lock_context *wb_lock_context;
	unsigned int wb_bytes;
};

struct nfs_fh {
	unsigned short size; /* of the data, which follow */
};

struct nfs_pgio_args {
	struct nfs_fh *fh;
	struct nfs_lock_context *lock_context;
	__u32 count;
};

struct nfs_pgio_res {
	__u64 count;
};

struct nfs_pgio_header {
	struct inode *inode;
	struct list_head pages;
	long long io_start;
	void *dreq;
	struct nfs_pgio_args args;
	struct nfs_pgio_res res;
};

struct nfs_commitargs {
	struct nfs_fh *fh;
};

struct nfs_commit_data {
	struct inode *inode;
	struct list_head pages;
	struct nfs_commitargs args;
};

struct nfs_server {
	struct rpc_clnt *client;
};

struct rpc_procinfo {
	const char *p_name;
};

struct rpc_message {
	const struct rpc_procinfo *rpc_proc;
};

struct sock;

struct rpc_xprt {
	int prot;
};

/* A transport with a socket, as those of RDMA have none. */
struct sock_xprt {
	struct sock *inet;
};

struct in6_address {
	__u64 word[2];
};

struct sock_common {
	__u32 skc_rcv_saddr;
	unsigned short skc_family;
	struct in6_address skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
};

struct rpc_clnt {
	struct rpc_xprt *cl_xprt;
	__u32 cl_prog;
};

struct xdr_buf {
	unsigned int len;
};

struct rpc_rqst {
	struct xdr_buf rq_snd_buf;
	int rq_ntrans;
};

struct rpc_task {
	int tk_status;
	struct rpc_message tk_msg;
	void *tk_calldata;
	struct rpc_clnt *tk_client;
	struct rpc_rqst *tk_rqstp;
	unsigned short tk_flags;
};

#pragma clang attribute pop

/* Numbers of the user ABI. */
#define IOT_IPPROTO_TCP 6
#define IOT_IPPROTO_UDP 17
#define IOT_AF_INET 2
#define IOT_AF_INET6 10

/*
 * The socket of a transport; 0 where it has none. In all kernels struct sock_xprt begins with
 * its struct rpc_xprt, the socket's file and the socket (include/linux/sunrpc/xprtsock.h). The
 * latter is in no type information of 5.10.
 */
static __always_inline __u64 iot_xprt_sock(struct rpc_xprt *xprt)
{
	struct sock_xprt *transport = (void *)xprt;
	int protocol = HOT(xprt, prot);

	if (protocol != IOT_IPPROTO_TCP && protocol != IOT_IPPROTO_UDP)
		return 0;
	if (bpf_core_field_exists(transport->inet))
		return (__u64)HOT(transport, inet);
	return iot_hot_word((__u64)xprt + bpf_core_type_size(struct rpc_xprt) + sizeof(void *));
}

#define IOT_NFS_PROGRAM 100003 /* ONC RPC program number of NFS, all versions (RFC 1813, 7530) */
#define IOT_RPC_ASYNC 1 /* RPC_TASK_ASYNC */

/* The fields of struct nfs_page that we read. */
struct nfs_req {
	__u64 next;
	struct page *page;
	struct nfs_lock_context *lock;
	__u32 bytes;
};

/*
 * 5.10 has no type information for modules. The first fields of struct nfs_page are
 * the same there as in all later kernels (read from the module's code), and do not
 * depend on the kernel's configuration.
 */
struct nfs_page_5_10 {
	__u64 next, prev;
	struct page *page;
	struct nfs_lock_context *lock;
	__u64 index;
	__u32 offset, pgbase, bytes, refs;
};

/* A struct nfs_page is read at once: each field alone would take a helper call. */
struct nfs_page_words {
	__u64 word[8];
};

static __always_inline void iot_read_page(struct nfs_req *r, __u64 req)
{
	struct nfs_page *page = (void *)req;
	union {
		struct nfs_page_5_10 fixed;
		struct nfs_page_words words;
	} u = {};
	const void *at = &u;

	bpf_probe_read_kernel(&u, sizeof(u), page);
	if (fixed_nfs_page) {
		r->next = u.fixed.next;
		r->page = u.fixed.page;
		r->lock = u.fixed.lock;
		r->bytes = u.fixed.bytes;
		return;
	}
	r->next = *(__u64 *)(at + bpf_core_field_offset(page->wb_list.next));
	r->page = *(struct page **)(at + bpf_core_field_offset(page->wb_page));
	r->lock = *(struct nfs_lock_context **)(at + bpf_core_field_offset(page->wb_lock_context));
	r->bytes = *(__u32 *)(at + bpf_core_field_offset(page->wb_bytes));
}

#endif
