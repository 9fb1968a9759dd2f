/* The packing half of x86.h as a library for pack.py. Build: cc -O2 -shared -fPIC x86.c */

#include "x86.h"

void pack_block(unsigned char *block, size_t length, int64_t offset, int64_t size) {
    x86_translate(block, length, offset, size, true);
}
