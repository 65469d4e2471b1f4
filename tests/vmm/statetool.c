/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The other side of a tern-vm, for its device state: takes one out, or gives any bytes in.
 *
 *	statetool capture MEM FILE	listens, prints its URI, writes the device state of the
 *					guest that comes to FILE, and refuses the guest
 *	statetool vanish MEM FILE	the same, but it takes the guest, and dies when it is told
 *					to run it
 *	statetool send MEM FILE URI	is a source whose RAM is zero and whose device state is
 *					what FILE holds; prints the outcome and the error
 *
 * MEM is that of --mem, in MiB.  One more argument is about regions that are not as they
 * must be: "one" (the second is missing), "other" (it has another name).
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <tern/tern.h>

#define MIB (1ull << 20)
#define LOW_ALIGN (2 * MIB)

struct tool {
	const char *path;
	bool vanishes;
};

static int tool_save(void *opaque, struct tern_state_writer *w)
{
	struct tool *t = opaque;
	FILE *f = fopen(t->path, "rb");
	char buf[4096];
	int ret = f ? 0 : -errno;
	size_t n;

	while (!ret && (n = fread(buf, 1, sizeof(buf), f)) > 0)
		ret = tern_state_write(w, buf, n);
	if (f)
		fclose(f);
	return ret;
}

static int tool_load(void *opaque, struct tern_state_reader *r)
{
	struct tool *t = opaque;
	FILE *f = fopen(t->path, "wb");
	char buf[4096];
	size_t n;

	while (f && (n = tern_state_remaining(r)) > 0) {
		n = n < sizeof(buf) ? n : sizeof(buf);
		if (tern_state_read(r, buf, n) || fwrite(buf, 1, n, f) != n)
			break;
	}
	if (f)
		fclose(f);
	return t->vanishes ? 0 : -ECANCELED; /* the guest stays where it is */
}

static int tool_resume(void *opaque)
{
	struct tool *t = opaque;

	if (t->vanishes)
		_exit(0);
	return 0;
}

static int add_region(struct tern_session *s, const char *name, uint64_t gpa, uint64_t size)
{
	struct tern_region_desc d = {
		.name = name, .gpa = gpa, .size = size, .numa_node = TERN_NODE_ANY, .fd = -1
	};
	int prot = PROT_READ | PROT_WRITE;

	d.hva = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return d.hva == MAP_FAILED ? -errno : tern_session_add_region(s, &d);
}

/* The machine's RAM, as @kind says. */
static int add_regions(struct tern_session *s, uint64_t mem, const char *kind)
{
	uint64_t low = mem / 4 * 3 / LOW_ALIGN * LOW_ALIGN;
	const char *second = strcmp(kind, "other") ? "ram-high" : "ram-other";
	int ret = add_region(s, "ram-low", 0, low);

	if (ret < 0 || !strcmp(kind, "one"))
		return ret;
	return add_region(s, second, 4096 * MIB, mem - low);
}

int main(int argc, char **argv)
{
	static const struct tern_vm_ops ops = { .resume = tool_resume,
						.save = tool_save,
						.load = tool_load };
	bool sends = argc > 1 && !strcmp(argv[1], "send");
	int want = sends ? 5 : 4;
	struct tern_session *s = NULL;
	struct tern_error err;
	struct tool t;
	char uri[256];
	int ret;

	if (argc != want && argc != want + 1)
		return 2;
	t = (struct tool){ .path = argv[3], .vanishes = !strcmp(argv[1], "vanish") };
	if (tern_session_new(sends ? TERN_SOURCE : TERN_DESTINATION, &s) ||
	    add_regions(s, strtoull(argv[2], NULL, 10) * MIB, argc > want ? argv[want] : "") < 0 ||
	    tern_session_set_vm_ops(s, &ops, &t) ||
	    tern_session_set(s, TERN_PARAM_DIRTY_PROVIDER, TERN_DIRTY_NONE))
		return 1;
	ret = sends ? tern_session_connect(s, argv[4]) : tern_session_listen(s, "tcp:127.0.0.1:0");
	if (ret)
		return 1;
	tern_session_uri(s, uri, sizeof(uri));
	if (!sends)
		printf("%s\n", uri);
	fflush(stdout);
	tern_session_wait(s, 60000);
	tern_session_error(s, &err);
	printf("%s %s\n", tern_outcome_name(tern_session_outcome(s)), err.message);
	tern_session_delete(&s);
	return 0;
}
