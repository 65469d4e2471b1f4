/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Feeds the files of directories to a fuzz target, without libFuzzer:
 *
 *	replay_TARGET DIRECTORY...
 *
 * A target aborts on what must not be.  Besides, a file whose name begins with
 * "full-" has to be valid to its end, and there has to be one: seeds that no
 * longer fit the protocol would leave the fuzzer at its surface unnoticed.
 */

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX (1u << 20)
#define PATIENCE_MS 3000

struct tally {
	unsigned files, full, bad;
};

/* Read @path into @buf; its length. */
static size_t read_input(const char *path, uint8_t *buf)
{
	FILE *f = fopen(path, "rb");

	FUZZ_CHECK(f, "cannot open %s", path);
	size_t n = fread(buf, 1, INPUT_MAX, f);

	FUZZ_CHECK(!ferror(f), "cannot read %s", path);
	fclose(f);
	return n;
}

/* Run the input in @path, called @name in its directory. */
static void replay_file(const char *path, const char *name, struct tally *t)
{
	static uint8_t buf[INPUT_MAX]; /* scratch, too large for a stack */
	size_t n = read_input(path, buf);
	uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees reads behind it */
	bool wants_full = !strncmp(name, "full-", 5);

	FUZZ_CHECK(exact, "no memory");
	memcpy(exact, buf, n);
	printf("%s: ", path);
	fflush(stdout);
	enum fuzz_reach reach = fuzz_one(exact, n, wants_full ? PATIENCE_MS : 50);

	printf("%s\n", reach == FUZZ_FULL ? "full" : "partly");
	free(exact);
	t->files++;
	t->full += wants_full;
	if (wants_full && reach != FUZZ_FULL) {
		fprintf(stderr, "%s: should be valid to its end and is not\n", path);
		t->bad++;
	}
}

/* Run all files of directory @path. */
static void replay_directory(const char *path, struct tally *t)
{
	struct dirent **names;
	int nr = scandir(path, &names, NULL, alphasort);

	FUZZ_CHECK(nr >= 0, "cannot list %s", path);
	for (int i = 0; i < nr; i++) {
		char file[4096];

		snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
		if (names[i]->d_name[0] != '.')
			replay_file(file, names[i]->d_name, t);
		free(names[i]);
	}
	free(names);
}

int main(int argc, char **argv)
{
	struct tally t = { 0 };

	for (int i = 1; i < argc; i++)
		replay_directory(argv[i], &t);
	printf("%u files, %u of them to be valid to the end, %u are not\n", t.files, t.full, t.bad);
	if (!t.full) {
		fprintf(stderr, "no file called full-*\n");
		return 1;
	}
	return t.bad ? 1 : 0;
}
