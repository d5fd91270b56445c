/* Asks libseccomp: which numbers calls have, and what filter it makes of a list of rules.
 *
 * Output "tables": one line `architecture number name` per call, then a line `end`.
 * Input per filter: `filter DEFAULT`, `arch TOKEN`…, `rule ACTION NAME COUNT (INDEX OP A B)…`…,
 * `end`. Output per filter: 32-bit count and so many sock_filter; or count 0 and the 32-bit errno of
 * the rule that libseccomp refused. */
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void tables(void)
{
	static const uint32_t archs[] = { SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32,
					  SCMP_ARCH_AARCH64, SCMP_ARCH_ARM };
	for (int a = 0; a < 5; a++) {
		for (int n = 0; n < 0xf1000; n++) {
			if (n == 1024)
				n = 0xf0000;
			int number = archs[a] == SCMP_ARCH_X32 ? n | 0x40000000 : n;
			char *name = seccomp_syscall_resolve_num_arch(archs[a], number);
			if (name)
				printf("%d %d %s\n", a, number, name);
			free(name);
		}
	}
	printf("end\n");
	fflush(stdout);
}

static void answer(scmp_filter_ctx filter, uint32_t failed)
{
	uint32_t head[2] = { 0, failed };
	if (failed) {
		fwrite(head, 4, 2, stdout);
	} else {
		int file = memfd_create("filter", 0);
		if (seccomp_export_bpf(filter, file) != 0)
			exit(3);
		off_t size = lseek(file, 0, SEEK_END);
		void *bytes = malloc(size);
		if (pread(file, bytes, size, 0) != size)
			exit(4);
		head[0] = size / 8;
		fwrite(head, 4, 1, stdout);
		fwrite(bytes, 1, size, stdout);
		free(bytes);
		close(file);
	}
	fflush(stdout);
}

int main(void)
{
	char word[256], name[256];
	scmp_filter_ctx filter = NULL;
	uint32_t number, failed = 0;
	tables();
	while (scanf("%255s", word) == 1) {
		/* Some rule sets make libseccomp 2.5 spin for good. */
		alarm(30);
		if (!strcmp(word, "filter")) {
			if (scanf("%" SCNu32, &number) != 1)
				exit(2);
			filter = seccomp_init(number);
			failed = filter ? 0 : 22;
		} else if (!strcmp(word, "arch")) {
			static const uint32_t archs[] = { SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32,
							  SCMP_ARCH_AARCH64, SCMP_ARCH_ARM };
			if (scanf("%" SCNu32, &number) != 1 || number > 4)
				exit(2);
			int rc = seccomp_arch_add(filter, archs[number]);
			if (rc < 0 && rc != -17)
				failed = -rc;
		} else if (!strcmp(word, "rule")) {
			struct scmp_arg_cmp args[6];
			unsigned count;
			if (scanf("%" SCNu32 " %255s %u", &number, name, &count) != 3 || count > 6)
				exit(2);
			for (unsigned i = 0; i < count; i++) {
				unsigned index, op;
				uint64_t a, b;
				if (scanf("%u %u %" SCNu64 " %" SCNu64, &index, &op, &a, &b) != 4)
					exit(2);
				args[i] = (struct scmp_arg_cmp){ index, op, a, b };
			}
			int call = seccomp_syscall_resolve_name(name);
			if (call == __NR_SCMP_ERROR || failed)
				continue;
			int rc = seccomp_rule_add_array(filter, number, call, count, args);
			if (rc < 0)
				failed = -rc;
		} else if (!strcmp(word, "end")) {
			answer(filter, failed);
			seccomp_release(filter);
		}
	}
	return 0;
}
