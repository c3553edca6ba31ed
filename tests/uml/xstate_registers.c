/*
 * For tests: are the processor's registers after a system call what they were before it?
 *
 *     xstate_registers stop SEED         is traced by its parent; stops once with its registers full of numbers, and prints
 *                                        what it filled them with and what it found afterwards, as two XSAVE areas
 *     xstate_registers run SEED ROUNDS   fills them again and again, lets others run, is interrupted by signals whose handler
 *                                        fills them otherwise, and forks; prints how often another process had its turn
 *
 * The registers are those of x87, SSE, AVX, AVX-512 and APX, as far as this processor has them.
 */
#include <cpuid.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define X87_SSE 3u
#define AVX 4u
#define WANTED (X87_SSE | AVX | 7u << 5 | 1u << 19)
#define IN_SIGNAL_FRAME (X87_SSE | AVX) /* User-mode Linux 6.1: sizeof(struct _xstate) in arch/x86/um/signal.c */
#define LEAF 0xD
#define ROOM (16 << 10)

struct area {
	_Alignas(64) uint8_t bytes[ROOM];
};

static uint32_t available(void)
{
	uint32_t low, high, a, b, c, d;
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		exit(3);
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low & WANTED;
}

static uint32_t state; /* of the random numbers */

static uint8_t number(void)
{
	state = state * 1664525 + 1013904223;
	return (uint8_t)(state >> 24);
}

/* Standard format: Intel's manual, volume 1, section 13.4. What has a meaning stays as a program finds it at its start. */
static void fill(struct area *area, uint32_t features)
{
	memset(area, 0, sizeof *area);
	uint16_t control = 0x37f;
	uint32_t mxcsr = 0x1f80;
	memcpy(area->bytes, &control, sizeof control);
	area->bytes[4] = 0xff; /* no x87 register is empty */
	memcpy(area->bytes + 24, &mxcsr, sizeof mxcsr);
	for (int x87 = 0; x87 < 8; x87++)
		for (int at = 0; at < 10; at++)
			area->bytes[32 + 16 * x87 + at] = number();
	for (int at = 160; at < 416; at++)
		area->bytes[at] = number();
	memcpy(area->bytes + 512, &features, sizeof features);
	for (uint32_t component = 2; component < 32; component++) {
		uint32_t size, offset, c, d;
		if (!(features >> component & 1) || !__get_cpuid_count(LEAF, component, &size, &offset, &c, &d))
			continue;
		for (uint32_t at = offset; at < offset + size && at < ROOM; at++)
			area->bytes[at] = number();
	}
}

/* One block, so that the compiler has no say over a register in between. Runs on for a while before the system call, so that
 * the kernel may interrupt it there as well. */
static long through(long call, long first, long second, long third, const struct area *filled, struct area *found,
		    uint32_t features)
{
	register const struct area *in __asm__("r12") = filled;
	register struct area *out __asm__("r13") = found;
	register long mask __asm__("r14") = features;
	register long turns __asm__("r15") = 100000;
	register long number_or_result __asm__("rbx") = call;
	memset(found, 0, sizeof *found);
	__asm__ volatile("mov %%r14, %%rax\n\txor %%edx, %%edx\n\txrstor64 (%%r12)\n"
			 "1:\tdec %%r15\n\tjnz 1b\n\t"
			 "mov %[third], %%rdx\n\tmov %%rbx, %%rax\n\tsyscall\n\tmov %%rax, %%rbx\n\t"
			 "mov %%r14, %%rax\n\txor %%edx, %%edx\n\txsave64 (%%r13)\n\tfninit"
			 : "+r"(number_or_result), "+r"(turns)
			 : "r"(in), "r"(out), "r"(mask), "D"(first), "S"(second), [third] "m"(third)
			 : "rax", "rcx", "rdx", "r11", "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
			   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	return number_or_result;
}

static bool same(const struct area *filled, const struct area *found)
{
	/* 6 to 23: where the last x87 instruction was; 28 to 31 and 416 to 511: not registers. */
	return memcmp(filled->bytes, found->bytes, 6) == 0 && memcmp(filled->bytes + 24, found->bytes + 24, 4) == 0 &&
	       memcmp(filled->bytes + 32, found->bytes + 32, 416 - 32) == 0 &&
	       memcmp(filled->bytes + 512, found->bytes + 512, ROOM - 512) == 0;
}

static struct area filled, found, other, unused;
static uint32_t features;

static void fill_otherwise(int signal)
{
	through(SYS_sched_yield, signal, 0, 0, &other, &unused, features);
}

static void check(const char *after, const struct area *is)
{
	if (same(&filled, is))
		return;
	for (int at = 0; at < ROOM; at++)
		if (filled.bytes[at] != is->bytes[at])
			fprintf(stderr, "%s: byte %d was %02x and is %02x\n", after, at, filled.bytes[at], is->bytes[at]);
	exit(1);
}

static void run(int rounds)
{
	signal(SIGUSR1, fill_otherwise);
	fill(&other, features);
	for (int round = 0; round < rounds; round++) {
		fill(&filled, features);
		through(SYS_sched_yield, 0, 0, 0, &filled, &found, features);
		check("yield", &found);
		if (round % 16 == 0) {
			fill(&filled, features & IN_SIGNAL_FRAME);
			through(SYS_kill, getpid(), SIGUSR1, 0, &filled, &found, features & IN_SIGNAL_FRAME);
			check("signal", &found);
		}
		if (round % 64 == 0) {
			fill(&filled, features);
			long child = through(SYS_fork, 0, 0, 0, &filled, &found, features);
			check(child == 0 ? "fork, in the child" : "fork, in the parent", &found);
			if (child == 0)
				_exit(0);
			int status;
			if (waitpid((pid_t)child, &status, 0) != child || status != 0)
				exit(2);
		}
	}
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	printf("%ld\n", usage.ru_nvcsw + usage.ru_nivcsw);
}

int main(int count, char **words)
{
	features = available();
	if (count < 3)
		return 2;
	state = (uint32_t)atoi(words[2]);
	if (strcmp(words[1], "run") == 0 && count == 4) {
		run(atoi(words[3]));
		return 0;
	}
	fill(&filled, features);
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	through(SYS_kill, getpid(), SIGSTOP, 0, &filled, &found, features);
	fwrite(&filled, sizeof filled, 1, stdout);
	fwrite(&found, sizeof found, 1, stdout);
	return 0;
}
