/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Arguments of a probed function. A kprobe's context is the architecture's
 * struct pt_regs (user ABI: arch/x86/include/uapi/asm/ptrace.h and
 * arch/arm64/include/uapi/asm/ptrace.h), read here as an array of words so that
 * an object for either can be built on either.
 */
#ifndef IOTRACE_ARCH_H
#define IOTRACE_ARCH_H

#include <linux/types.h>

#if defined(__TARGET_ARCH_x86)
#define IOT_PARM1(regs) (((__u64 *)(regs))[14]) /* rdi */
#define IOT_PARM2(regs) (((__u64 *)(regs))[13]) /* rsi */
#define IOT_PARM3(regs) (((__u64 *)(regs))[12]) /* rdx */
#define IOT_PARM4(regs) (((__u64 *)(regs))[11]) /* rcx */
#define IOT_PARM5(regs) (((__u64 *)(regs))[9]) /* r8 */
#define IOT_PARM6(regs) (((__u64 *)(regs))[8]) /* r9 */
#define IOT_RESULT(regs) (((__u64 *)(regs))[10]) /* rax */
#elif defined(__TARGET_ARCH_arm64)
#define IOT_PARM1(regs) (((__u64 *)(regs))[0])
#define IOT_PARM2(regs) (((__u64 *)(regs))[1])
#define IOT_PARM3(regs) (((__u64 *)(regs))[2])
#define IOT_PARM4(regs) (((__u64 *)(regs))[3])
#define IOT_PARM5(regs) (((__u64 *)(regs))[4])
#define IOT_PARM6(regs) (((__u64 *)(regs))[5])
#define IOT_RESULT(regs) (((__u64 *)(regs))[0])
#else
#error "which architecture?"
#endif

#endif
