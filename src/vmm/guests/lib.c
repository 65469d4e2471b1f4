/* SPDX-License-Identifier: BSD-2-Clause */

/* What the guests share; see lib.h. */

#include "lib.h"

#define LAPIC ((volatile uint32_t *)0xfee00000u)
#define IOAPIC ((volatile uint32_t *)0xfec00000u)
#define VECTOR_UD 6
#define RAM_ALIGN 0x200000ull

struct gate {
	uint16_t offset_low, selector;
	uint8_t ist, type;
	uint16_t offset_mid;
	uint32_t offset_high, zero;
} __attribute__((packed));

#define STACK_BYTES 16384u /* as in start.S */
#define TSS_SELECTOR(cpu) (0x28u + 16u * (cpu))

/* Only there to say where the stack of more privilege is. */
static struct tss {
	uint32_t reserved;
	uint64_t rsp0;
	uint32_t rest[23];
} __attribute__((packed, aligned(16))) tss[BOOT_VCPUS_MAX];

const struct boot_info *boot;
extern char stacks[];
extern uint64_t gdt[];
extern const char interrupt_stubs[];
static struct gate idt[64] __attribute__((aligned(16)));
static volatile int idt_ready;
static volatile int print_lock;

void guest_start(const struct boot_info *info, unsigned cpu);
void interrupt(struct frame *f);

/* gcc may call these even in freestanding code. */
void *memset(void *p, int c, size_t n)
{
	void *q = p;

	asm volatile("rep stosb" : "+D"(q), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *q = to;

	asm volatile("rep movsb" : "+D"(q), "+S"(from), "+c"(n) : : "memory");
	return to;
}

/* ------------------------------------------------------------------ printing */

static char *put_number(char *at, uint64_t n, unsigned base)
{
	char digits[24];
	unsigned nr = 0;

	do {
		digits[nr++] = "0123456789abcdef"[n % base];
		n /= base;
	} while (n);
	while (nr)
		*at++ = digits[--nr];
	return at;
}

/* A line that is ready to be sent. */
struct line {
	size_t len;
	char text[512];
};

static uint64_t line_send(uint64_t argument)
{
	const struct line *l = (const struct line *)argument;
	const char *from = l->text;
	size_t n = l->len;

	while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE))
		cpu_relax();
	asm volatile("rep outsb" : "+S"(from), "+c"(n) : "d"(BOOT_SERIAL_PORT) : "memory");
	__atomic_store_n(&print_lock, 0, __ATOMIC_RELEASE);
	return 0;
}

/* Is this code behind user_run()? */
static bool is_user(void)
{
	uint16_t cs;

	asm volatile("mov %%cs, %0" : "=r"(cs));
	return cs & 3;
}

void say_pieces(const struct piece *p, unsigned nr)
{
	struct line l;
	char *at = l.text, *end = l.text + sizeof(l.text) - 26;

	for (unsigned i = 0; i < nr && at < end; i++) {
		if (p[i].text)
			for (const char *c = p[i].text; *c && at < end; c++)
				*at++ = *c;
		else
			at = put_number(at, p[i].number, p[i].hex ? 16 : 10);
	}
	*at++ = '\n';
	l.len = (size_t)(at - l.text);
	if (is_user())
		kernel_call(line_send, (uint64_t)&l);
	else
		line_send((uint64_t)&l);
}

/* ------------------------------------------------------------------ interrupts */

static unsigned this_cpu(void)
{
	return LAPIC[0x20 / 4] >> 24;
}

/* Any vector; called from start.S. */
void interrupt(struct frame *f)
{
	if (f->vector == VECTOR_UD && f->rip == (uint64_t)kernel_call) {
		f->rax = ((uint64_t(*)(uint64_t))f->rdi)(f->rsi);
		f->rip += 2;
		return;
	}
	if (f->vector < 32) {
		print_lock = 0;
		say(T("guest: exception "), N(f->vector), T(" on vcpu "), N(this_cpu()),
		    T(", error 0x"), X(f->error), T(", rip 0x"), X(f->rip));
		for (;;)
			asm volatile("cli; hlt");
	}
	if (f->vector == VECTOR_SPURIOUS)
		return;
	guest_interrupt(this_cpu(), (unsigned)f->vector);
	LAPIC[0xb0 / 4] = 0;
}

static void idt_fill(void)
{
	for (unsigned i = 0; i < 64; i++) {
		uint64_t to = (uint64_t)interrupt_stubs + i * 16;

		idt[i] = (struct gate){
			.offset_low = (uint16_t)to,
			.selector = 8,
			.type = 0x8e,
			.offset_mid = (uint16_t)(to >> 16),
			.offset_high = (uint32_t)(to >> 32),
		};
	}
	__atomic_store_n(&idt_ready, 1, __ATOMIC_RELEASE);
}

static void idt_load(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) p = { sizeof(idt) - 1, (uint64_t)idt };

	asm volatile("lidt %0" : : "m"(p));
}

/* Where the stack is when an interrupt takes privileges back. */
static void tss_load(unsigned cpu)
{
	uint64_t base = (uint64_t)&tss[cpu];

	tss[cpu].rsp0 = (uint64_t)stacks + (cpu + 1) * STACK_BYTES;
	gdt[TSS_SELECTOR(cpu) / 8] = (sizeof(struct tss) - 1) | (base & 0xffffff) << 16 |
				     0x89ull << 40 | (base >> 24 & 0xff) << 56;
	gdt[TSS_SELECTOR(cpu) / 8 + 1] = base >> 32;
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR(cpu)) : "memory");
}

void timer_start(uint32_t ns)
{
	LAPIC[0x3e0 / 4] = 0xb; /* divide by 1; KVM's bus has 1 GHz */
	LAPIC[0x320 / 4] = 0x20000 | VECTOR_TIMER; /* periodic */
	LAPIC[0x380 / 4] = ns;
}

static void ioapic_write(uint32_t reg, uint32_t v)
{
	IOAPIC[0] = reg;
	IOAPIC[4] = v;
}

void pit_start(uint16_t divisor)
{
	/* KVM has the PIT on pin 0 unless told otherwise; the 8259s stay masked. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	ioapic_write(0x11, 0);
	ioapic_write(0x10, VECTOR_PIT); /* fixed, physical, edge, unmasked */
	outb(0x43, 0x34); /* channel 0, mode 2 */
	outb(0x40, (uint8_t)divisor);
	outb(0x40, (uint8_t)(divisor >> 8));
}

/* The first C code of each vCPU. */
void guest_start(const struct boot_info *info, unsigned cpu)
{
	if (!cpu) {
		boot = info;
		idt_fill();
	}
	while (!__atomic_load_n(&idt_ready, __ATOMIC_ACQUIRE))
		cpu_relax();
	idt_load();
	tss_load(cpu);
	LAPIC[0xf0 / 4] = 0x100 | VECTOR_SPURIOUS;
	LAPIC[0x350 / 4] = 0x10000; /* LINT0: nothing comes from the 8259s */
	guest_main(cpu);
}

/* -------------------------------------------------------------------- options */

/* What stands behind "NAME=", or NULL. */
static const char *find(const char *name)
{
	for (const char *p = boot->args; *p;) {
		const char *n = name;

		while (*n && *p == *n)
			p++, n++;
		if (!*n && *p == '=')
			return p + 1;
		while (*p && *p != ' ')
			p++;
		while (*p == ' ')
			p++;
	}
	return NULL;
}

uint64_t option(const char *name, uint64_t def)
{
	const char *p = find(name);
	uint64_t v = 0;

	if (!p || *p < '0' || *p > '9')
		return def;
	for (; *p >= '0' && *p <= '9'; p++)
		v = v * 10 + (uint64_t)(*p - '0');
	return *p == 'K' ? v << 10 : *p == 'M' ? v << 20 : *p == 'G' ? v << 30 : v;
}

bool option_is(const char *name, const char *value)
{
	const char *p = find(name);

	while (p && *value && *p == *value)
		p++, value++;
	return p && !*value && (!*p || *p == ' ');
}

/* ----------------------------------------------------------------------- RAM */

/* Usable part of a range, in pages; *@gpa is where it begins. */
static uint64_t usable(const struct boot_range *r, uint64_t *gpa)
{
	uint64_t begin = r->gpa, end = r->gpa + r->size;

	if (begin < boot->image_end)
		begin = (boot->image_end + RAM_ALIGN - 1) & ~(RAM_ALIGN - 1);
	*gpa = begin;
	return begin < end ? (end - begin) / PAGE_BYTES : 0;
}

uint64_t ram_pages(void)
{
	uint64_t sum = 0, gpa;

	for (unsigned i = 0; i < boot->nr_ranges; i++)
		sum += usable(&boot->ranges[i], &gpa);
	return sum;
}

uint64_t *ram_page(uint64_t n)
{
	uint64_t gpa, nr;

	for (unsigned i = 0; i < boot->nr_ranges; i++) {
		nr = usable(&boot->ranges[i], &gpa);
		if (n < nr)
			return (uint64_t *)(gpa + n * PAGE_BYTES);
		n -= nr;
	}
	return NULL;
}
