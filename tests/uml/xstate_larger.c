/*
 * For tests: makes ptrace answer as on a processor that has AMX beside all that this one has. Preloaded behind xstate.c,
 * in the place of the kernel.
 *
 * What is added to the XSAVE area, behind all that came before AMX, are bytes that differ from process to process and that must come back as they were given
 * out. An area without them, or with others, is EFAULT.
 */
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define BEFORE ((size_t)2696)  /* the area up to AVX-512 and PKRU */
#define ADDED ((size_t)8312)   /* what AMX adds to that */

typedef long Ptrace(enum __ptrace_request request, ...);

static Ptrace *next;

__attribute__((constructor)) static void find_next(void)
{
	next = (Ptrace *)dlsym(RTLD_NEXT, "ptrace");
}

/* The state of a process as that processor would have it. What this one has are its first `real` bytes, what is added the
 * last ADDED. */
static long read_state(pid_t pid, void *type, struct iovec *state, size_t *real)
{
	static uint8_t area[64 << 10];
	memset(area, 0, sizeof area);
	*state = (struct iovec){ .iov_base = area, .iov_len = sizeof area - ADDED };
	long failed = next(PTRACE_GETREGSET, pid, type, state);
	if (failed)
		return failed;
	*real = state->iov_len;
	size_t before = *real > BEFORE ? *real : BEFORE;
	state->iov_len = before + ADDED;
	for (size_t at = before; at < state->iov_len; at++)
		area[at] = (uint8_t)((size_t)pid * 31 + at * 7 + (at >> 8));
	return 0;
}

static long get(pid_t pid, void *type, struct iovec *given)
{
	struct iovec state;
	size_t real;
	long failed = read_state(pid, type, &state, &real);
	if (failed)
		return failed;
	if (given->iov_len > state.iov_len)
		given->iov_len = state.iov_len;
	memcpy(given->iov_base, state.iov_base, given->iov_len);
	return 0;
}

static long set(pid_t pid, void *type, struct iovec *given)
{
	struct iovec state;
	size_t real;
	long failed = read_state(pid, type, &state, &real);
	if (failed)
		return failed;
	size_t before = state.iov_len - ADDED;
	if (given->iov_len < state.iov_len ||
	    memcmp((uint8_t *)given->iov_base + before, (uint8_t *)state.iov_base + before, ADDED) != 0) {
		errno = EFAULT;
		return -1;
	}
	struct iovec first = { .iov_base = given->iov_base, .iov_len = real };
	return next(PTRACE_SETREGSET, pid, type, &first);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if ((uintptr_t)address == NT_X86_XSTATE && request == PTRACE_GETREGSET)
		return get(pid, address, data);
	if ((uintptr_t)address == NT_X86_XSTATE && request == PTRACE_SETREGSET)
		return set(pid, address, data);
	return next(request, pid, address, data);
}
