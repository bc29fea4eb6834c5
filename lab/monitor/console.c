/* The serial line: all that the monitor has to say goes there. */
#include "monitor.h"

#define COM1 0x3f8
#define LINE_CONTROL (COM1 + 3)
#define EIGHT_BITS 3 /* 8N1; after a reset a character has five */
#define LINE_STATUS (COM1 + 5)
#define READY_TO_SEND 0x20

static volatile u32 speaker; /* the CPU that is in the middle of a line, counted from 1 */

static void put(char c)
{
	while (!(in8(LINE_STATUS) & READY_TO_SEND))
		;
	out8(COM1, c);
}

void console_init(void) { out8(LINE_CONTROL, EIGHT_BITS); }

static void put_number(u64 n, u64 base)
{
	char digits[24];
	int count = 0;
	do
		digits[count++] = "0123456789abcdef"[n % base];
	while (n /= base);
	while (count)
		put(digits[--count]);
}

static void put_line(const char *format, va_list args)
{
	while (!__sync_bool_compare_and_swap(&speaker, 0, this_cpu() + 1))
		asm volatile("pause");
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(*s);
			break;
		case 'x':
			put('0');
			put('x');
			put_number(va_arg(args, u64), 16);
			break;
		case 'u':
			put_number(va_arg(args, u64), 10);
			break;
		}
	}
	put('\r');
	put('\n');
	__atomic_store_n(&speaker, 0, __ATOMIC_RELEASE);
}

void say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	put_line(format, args);
	va_end(args);
}

void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	if (speaker == this_cpu() + 1) /* an exception in the middle of a line: nobody else will end it */
		speaker = 0;
	put_line(format, args);
	say("monitor: over");
	for (;;)
		asm volatile("cli; hlt");
}
