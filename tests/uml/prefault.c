/*
 * The heap of a program, and large buffers: see prefault.h. Preloaded into all programs of a guest (guest.py), with
 * prefault_libraries.c.
 */
#include <errno.h>
#include <malloc.h>

#include "prefault.h"

#define WORTH_IT (32 * PAGE) /* of a flush, which is three system calls and a walk through all page tables */
#define LARGEST ((uintptr_t)64 << 20)
#define HEAP_STEP (512 << 10)

/* Of the memory that brk(2) gives: up to where it is populated. Threads may count over each other here, and then a page
 * has its fault. */
static uintptr_t heap_start, heap_ready;

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset)
{
	long result = call(SYS_mmap, (uintptr_t)address, length, (uintptr_t)protection, (uintptr_t)flags, (uintptr_t)file,
			   (uintptr_t)offset);
	if (result < 0 && result > -(long)PAGE) {
		errno = (int)-result;
		return MAP_FAILED;
	}
	int ordinary = (flags & MAP_ANONYMOUS) != 0 && (flags & (MAP_NORESERVE | MAP_STACK)) == 0;
	if (ordinary && (protection & PROT_WRITE) != 0 && length >= WORTH_IT && length <= LARGEST) {
		populate((uintptr_t)result, (uintptr_t)result + length, 1);
		flush();
	}
	return (void *)result;
}

void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

/* The heap grows in larger steps, and keeps what was freed: what comes from mmap is new each time. */
__attribute__((constructor)) static void set_up_heap(void)
{
	mallopt(M_TOP_PAD, HEAP_STEP);
	mallopt(M_TRIM_THRESHOLD, (int)LARGEST);
	mallopt(M_MMAP_THRESHOLD, (int)(LARGEST / 2)); /* the most there is */
}

static void *ready(void *given, size_t length)
{
	uintptr_t start = (uintptr_t)given, stop = start + length;
	if (start == 0)
		return given;
	if (heap_start == 0)
		heap_start = heap_ready = start;
	if (start >= heap_start && start < heap_start + LARGEST * 16) {
		uintptr_t end = stop > heap_ready ? (uintptr_t)call(SYS_brk, 0, 0, 0, 0, 0, 0) : 0;
		if (end >= stop) {
			populate(heap_ready, end, 1);
			flush();
			heap_ready = end;
		}
	} else if (length >= WORTH_IT && length <= LARGEST) { /* a mapping of its own, or in the heap of a thread */
		populate(start, stop, 1);
		flush();
	}
	return given;
}

void *malloc(size_t length)
{
	return ready(__libc_malloc(length), length);
}

void *calloc(size_t count, size_t length)
{
	return ready(__libc_calloc(count, length), count * length);
}

void *realloc(void *given, size_t length)
{
	return ready(__libc_realloc(given, length), length);
}
