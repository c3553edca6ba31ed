/*
 * The whole extended state of the processor for a ptrace caller that keeps only the first part of it. Preloaded into
 * linux.uml (guest.py), where nothing else of a process is kept while it doesn't run.
 *
 * To let one of its processes go on, linux.uml 6.1 hands back 2696 bytes of XSAVE area (HOST_FP_SIZE in Linux
 * arch/x86/um/user-offsets.c), which was enough up to AVX-512 and PKRU. The kernel takes the whole area or nothing:
 * another length is EFAULT (xstateregs_set in arch/x86/kernel/fpu/regset.c). With AMX the area has 11008 bytes, so the
 * first process of a guest can't start: "ptrace set fp regs failed, errno = 14". Reading the first part is allowed.
 *
 * So what the caller doesn't have is read from the stopped process itself at the moment of writing: there it is, as the
 * process left it. Nothing is kept here between two calls. What is shorter is decided by asking the kernel, so this holds
 * for state that no processor has today, and where the caller's part is the whole, it changes nothing.
 *
 * The threads of a process of User-mode Linux are one process of the host, and a new one begins as a copy of its parent;
 * so what lies beyond the caller's part is the process's and not the thread's. For AMX that is nothing: its tiles are
 * granted to a process that asks for them (arch_prctl ARCH_REQ_XCOMP_PERM), which User-mode Linux does not know of; its
 * programs get EINVAL, and the tiles stay in their initial state.
 */
#include <cpuid.h>
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

/* The standard format of an XSAVE area: Intel's manual, volume 1, section 13.4. */
#define FEATURES_IN_USE 512 /* XSTATE_BV, the first eight bytes of the header */
#define HEADER_END 576
#define FIRST_EXTENDED 2
#define LAST_EXTENDED 62
#define LEAF 0xD
#define OF_SUPERVISOR 1 /* ECX: never in the standard format */

typedef long Ptrace(enum __ptrace_request request, ...);

static Ptrace *next;

/* Not on the stack, which in a process of User-mode Linux's kernel has 16 KiB. That kernel has one processor and takes no
 * turns in a system call, so there is one call at a time. */
static uint8_t area[64 << 10];

static size_t whole; /* of the area, in bytes: the same for every process; 0 = not asked yet */

/* What of an area lies in its first `part` bytes. */
struct split {
	size_t part;
	size_t copied;   /* up to the first component that doesn't lie in it wholly */
	uint64_t beyond; /* bits in XSTATE_BV of those that don't */
};

__attribute__((constructor)) static void find_next(void)
{
	next = (Ptrace *)dlsym(RTLD_NEXT, "ptrace");
	if (next == NULL) {
		fputs("xstate: there is no ptrace behind this one: preload it into a program that is linked with the C library\n",
		      stderr);
		abort();
	}
}

static struct split split_at(size_t part)
{
	struct split split = { .part = part, .copied = part };
	for (unsigned component = FIRST_EXTENDED; component <= LAST_EXTENDED; component++) {
		unsigned size = 0, offset = 0, kind = 0, unused = 0;
		if (!__get_cpuid_count(LEAF, component, &size, &offset, &kind, &unused))
			break;
		if (size == 0 || (kind & OF_SUPERVISOR) != 0 || (size_t)offset + size <= part)
			continue;
		split.beyond |= UINT64_C(1) << component;
		if (offset < split.copied)
			split.copied = offset;
	}
	return split;
}

static long set_xstate(pid_t pid, void *type, struct iovec *given)
{
	static struct split split; /* asked once: under a hypervisor CPUID is slow */
	if (given->iov_len < HEADER_END || given->iov_len % sizeof(uint64_t) != 0 || (whole != 0 && given->iov_len >= whole))
		return next(PTRACE_SETREGSET, pid, type, given);
	struct iovec all = { .iov_base = area, .iov_len = sizeof area };
	long failed = next(PTRACE_GETREGSET, pid, type, &all);
	if (failed)
		return failed;
	if (all.iov_len == sizeof area) { /* there may be more */
		errno = E2BIG;
		return -1;
	}
	whole = all.iov_len;
	if (given->iov_len >= whole)
		return next(PTRACE_SETREGSET, pid, type, given);
	if (split.part != given->iov_len)
		split = split_at(given->iov_len);
	uint64_t current, features;
	memcpy(&current, area + FEATURES_IN_USE, sizeof current);
	memcpy(area, given->iov_base, split.copied);
	memcpy(&features, area + FEATURES_IN_USE, sizeof features);
	features = (features & ~split.beyond) | (current & split.beyond);
	memcpy(area + FEATURES_IN_USE, &features, sizeof features);
	return next(PTRACE_SETREGSET, pid, type, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
		return set_xstate(pid, address, data);
	return next(request, pid, address, data);
}
