/* Jumps and calls of x86-64 code, written as places instead of distances: the same function called from many places
 * looks the same, and the packed libraries become 6 % smaller. launcher.c turns it back while it unpacks.
 *
 * A distance r at place p of a file of n bytes becomes r + p if that lies inside the file, else r - n if that lies just
 * before it; all other values stay. Each value has one source, so it can be turned back without any mark.
 *
 * Source: the translation of E8 calls in Microsoft's LZX format (Cabinet), for E9 jumps too
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define X86_BLOCK ((size_t)1 << 20)         /* files are treated in blocks of this size, counted from their begin */

static void x86_translate(unsigned char *block, size_t length, int64_t offset, int64_t size, bool is_packing) {
    for (size_t i = 0; i + 5 <= length;) {
        if ((block[i] & 0xfe) != 0xe8) {
            i++;
            continue;
        }
        int64_t place = offset + (int64_t)i;
        int32_t found;
        memcpy(&found, block + i + 1, sizeof found);   /* little end first on every machine that runs such code */
        if (found >= -place && found < size) {
            int64_t value = found;
            if (is_packing) value += value < size - place ? place : -size;
            else value += value >= 0 ? -place : size;
            int32_t written = (int32_t)value;
            memcpy(block + i + 1, &written, sizeof written);
        }
        i += 5;                             /* in any case: what follows must not be read as part of another one */
    }
}
