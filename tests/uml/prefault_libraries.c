/*
 * The pages of a program and its libraries, before these are relocated: see prefault.h. It is needed by a library that
 * prefault.so needs, which is preloaded; so it comes behind the libraries that the program needs, and behind what those
 * need. The dynamic linker relocates the last one first, and to relocate this one it calls the resolver of an indirect
 * function (ifunc), which sees all others as they were mapped. No function of another library can be called there yet.
 *
 * An audit library (rtld-audit(7)) would be told earlier, but with one no program starts that needs what has
 * thread-local storage in whole cache lines, as liburcu has, and mkfs.xfs with it.
 */
#include <link.h>

#include "prefault.h"

#define LARGEST ((uintptr_t)64 << 20)

static void nothing(void)
{
}

static void (*prefault(void))(void)
{
	for (const struct link_map *object = _r_debug.r_map; object != NULL; object = object->l_next) {
		/* The vdso is not loaded where its address says; a program that can't be relocated has none. */
		if (object->l_addr == 0 || (uintptr_t)object->l_ld - object->l_addr > LARGEST)
			continue;
		const ElfW(Ehdr) *header = (const void *)object->l_addr;
		const ElfW(Phdr) *part = (const void *)(object->l_addr + header->e_phoff);
		for (int i = 0; i < header->e_phnum; i++) {
			uintptr_t start = object->l_addr + part[i].p_vaddr;
			if (part[i].p_type == PT_LOAD)
				populate(start, start + part[i].p_memsz, (part[i].p_flags & PF_W) != 0);
		}
	}
	flush();
	return nothing;
}

static void resolved(void) __attribute__((ifunc("prefault")));

void (*prefaulted)(void) = resolved;
