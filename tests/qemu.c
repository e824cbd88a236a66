/* Runs kernels of another processor under emulation, for qemu.py, which knows what lies where. Standard input holds
 * commands, each a letter and int64 numbers; answers go to standard output.
 *
 *     A size           -> address of new memory, at a multiple of 4096
 *     Z                   all of it is free again
 *     W address size bytes                       write
 *     R address size   -> bytes                  read
 *     C number, 13 integers, 2 float32 as int64  call a kernel; -> 1 when it is done
 *
 * Integers and floats travel in registers of their own, so one type serves all kernels.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define KERNEL(name) void name(void);
#include "kernels.h"
#undef KERNEL

typedef void (*function)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t, int64_t, int64_t, float, float);

static const function kernels[] = {
#define KERNEL(name) (function)name,
#include "kernels.h"
};

static int64_t number(void) {
    int64_t value = 0;
    fread(&value, 8, 1, stdin);
    return value;
}

static float real(void) {
    int32_t bits = (int32_t)number();
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void answer(const void *bytes, int64_t size) {
    fwrite(bytes, 1, size, stdout);
    fflush(stdout);
}

int main(void) {
    const int64_t room = 1 << 28;
    char *memory = mmap(0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *next = memory;
    for (int command; (command = getchar()) != EOF;) {
        if (command == 'A') {
            int64_t address = (int64_t)next, size = number();
            next += (size + 4095) / 4096 * 4096;
            if (next > memory + room) return 1;
            answer(&address, 8);
        } else if (command == 'Z') {
            next = memory;
        } else if (command == 'W') {
            char *place = (char *)number();
            fread(place, 1, number(), stdin);
        } else if (command == 'R') {
            char *place = (char *)number();
            answer(place, number());
        } else if (command == 'C') {
            int64_t which = number(), a[13], done = 1;
            for (int i = 0; i < 13; i++) a[i] = number();
            float first = real(), second = real();
            kernels[which](a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], first,
                           second);
            answer(&done, 8);
        } else {
            return 2;
        }
    }
    return 0;
}
