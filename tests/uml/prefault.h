/*
 * How a program of a guest gets memory before it touches it: prefault.c, and prefault_libraries.c, say when.
 *
 * In User-mode Linux a page fault takes 95 microseconds, twenty times as long as on the host, and there was next to
 * nothing else in what starting one of LVM's commands costs: 1290 faults of 120 milliseconds.
 *
 * MADV_POPULATE_READ and _WRITE (madvise(2)) make the guest's page tables. That alone spares no fault: User-mode Linux
 * maps a page in its host when the process is stopped by it, one at a time. But when a whole address space is flushed it
 * maps all that is new there in one go (fix_range_common in Linux arch/um/kernel/tlb.c). Writing to clear_refs (proc(5))
 * flushes it and does nothing else, as this kernel keeps no soft-dirty bits. Where either is refused, the faults come as
 * ever; nothing here changes what a program sees.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE ((uintptr_t)4096) /* User-mode Linux is for x86-64 only */

static long call(long number, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)
{
	long result;
	register uintptr_t fourth __asm__("r10") = d, fifth __asm__("r8") = e, sixth __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "rcx", "r11", "memory");
	return result;
}

static void flush(void)
{
	long file = call(SYS_openat, (uintptr_t)AT_FDCWD, (uintptr_t) "/proc/self/clear_refs", O_WRONLY | O_CLOEXEC, 0, 0, 0);
	if (file >= 0) {
		call(SYS_write, (uintptr_t)file, (uintptr_t) "4", 1, 0, 0, 0); /* soft-dirty bits */
		call(SYS_close, (uintptr_t)file, 0, 0, 0, 0, 0);
	}
}

static void populate(uintptr_t start, uintptr_t stop, int writable)
{
	start &= ~(PAGE - 1);
	stop = (stop + PAGE - 1) & ~(PAGE - 1);
	call(SYS_madvise, start, stop - start, (uintptr_t)(writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ), 0, 0, 0);
}
