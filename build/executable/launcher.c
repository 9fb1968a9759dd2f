/* Launcher of the one-file executable.
 *
 * The file is this program, then a zstd-compressed tar of a one-folder build, then an index of that tar, then a
 * trailer (pack.py writes all three). A start finds the unpacked folder in a cache, unpacks it if need be, and becomes
 * the program in it: same process id, so service managers, signals and daemons see nothing unusual.
 *
 *   main -> read_trailer -> for each cache: open_cache -> ensure_tree (unpack under a lock) -> become_program
 *
 * Cache:   $SPACEBOT_CACHE alone if set, else the first usable of $XDG_CACHE_HOME/spacebot, ~/.cache/spacebot,
 *          /var/tmp/spacebot-UID. Never one that another user could write to.
 *   <hash>/        the folder; <hash> is the sha256 of the tar, so two versions never mix
 *   <hash>.lock    held shared by every running program of that version, kept over exec
 *   <hash>.new     being unpacked; <hash>.broken: found damaged, about to go
 *   unpack.lock    held exclusively while unpacking and tidying
 * Exit:    70 with a message when the program cannot be started; otherwise the program's own.
 * Build:   cc -O2 -static -s launcher.c -lzstd (with x86.h beside it)
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zstd.h>

#include "x86.h"

#define EXIT_NO_START 70                    /* EX_SOFTWARE of sysexits.h */
#define BLOCK 512                           /* unit of a tar archive, bytes */
#define HASH_DIGITS 64
#define MAGIC "ONEFILE2"
#define CODE_MARK "x86"                     /* as owner of a file in the tar */
#define PATH_SIZE 2048                      /* longest cache path 1024, longest name in ustar 256, suffixes */
#define MAX_CACHE_PATH 1024
#define OUTPUT_SIZE ((size_t)4 << 20)       /* what zstd hands over at once; larger gains nothing */
#define REASONS_SIZE 4096

struct trailer {                            /* 160 bytes, numbers little end first; pack.py knows the same */
    uint64_t payload_offset, payload_length;
    uint64_t index_length;                  /* the index follows the payload */
    char version[32], hash[HASH_DIGITS], program[32];
    char magic[8];
};

struct cache {
    char path[MAX_CACHE_PATH];
    bool is_writable;
};

enum result { DONE, UNUSABLE, DAMAGED };    /* UNUSABLE: this cache will not do, another may */

static struct trailer trailer;
static const unsigned char *image;          /* the whole executable, mapped */
static char executable[PATH_MAX];
static char version[33], hash[HASH_DIGITS + 1], program[33];
static char reasons[REASONS_SIZE];          /* why caches were refused, one line each */

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void read_trailer(void);
static void fail_damaged(const char *what) __attribute__((noreturn));
static int cache_candidates(struct cache candidates[3]);
static bool open_cache(struct cache *cache, bool is_shared_parent);
static enum result ensure_tree(const struct cache *cache, int *lock);
static enum result repair_tree(const struct cache *cache, const char *tree);
static bool is_complete(const char *tree);
static enum result unpack(const char *folder);
static void tidy(const struct cache *cache);
static uint64_t megabytes_needed(void);
static void become_program(const struct cache *cache, char **argv);

int main(int argc, char **argv) {
    struct cache candidates[3];

    read_trailer();
    if (argc == 2 && (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)) {
        printf("%s %s\n", program, version);
        return fflush(stdout) == 0 ? 0 : EXIT_NO_START;
    }
    int count = cache_candidates(candidates);
    for (int i = 0; i < count; i++) {
        int lock = -1;
        bool is_shared_parent = strncmp(candidates[i].path, "/var/tmp/", 9) == 0;
        if (!open_cache(&candidates[i], is_shared_parent)) continue;
        enum result result = ensure_tree(&candidates[i], &lock);
        if (result == DAMAGED) fail_damaged("its payload cannot be unpacked");
        if (result == DONE) become_program(&candidates[i], argv);
        if (lock >= 0) close(lock);
    }
    fail("cannot unpack itself, no folder will do:\n%s"
         "Set SPACEBOT_CACHE to a folder of your own with %llu MB free, on a file system that may hold programs.",
         reasons, (unsigned long long)megabytes_needed());
}

static void fail(const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "%s: ", program[0] ? program : "spacebot");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_NO_START);
}

/* Remember why something did not work, to be told if nothing else does. */
static void note(const char *format, ...) {
    size_t used = strlen(reasons);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reasons + used, sizeof reasons - used, format, arguments);
    va_end(arguments);
}

static void fail_damaged(const char *what) {
    fail("%s is damaged: %s. Download it again, or restore it from a copy.", executable, what);
}

/* Map this file and read what pack.py appended to it. */
static void read_trailer(void) {
    struct stat status;
    ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
    if (length < 0) fail("cannot find its own file: /proc is not mounted");
    executable[length] = '\0';
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0) fail("cannot read %s: %s", executable, strerror(errno));
    uint64_t size = (uint64_t)status.st_size;
    if (size < sizeof trailer) fail_damaged("it is too short");
    image = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
    if (image == MAP_FAILED) fail("cannot map %s: %s", executable, strerror(errno));
    close(file);

    memcpy(&trailer, image + size - sizeof trailer, sizeof trailer);
    uint64_t body = size - sizeof trailer;
    if (memcmp(trailer.magic, MAGIC, sizeof trailer.magic) != 0) fail_damaged("its end is missing");
    if (trailer.payload_offset > body || trailer.payload_length > body - trailer.payload_offset ||
        trailer.index_length != body - trailer.payload_offset - trailer.payload_length)
        fail_damaged("its parts do not add up");
    memcpy(version, trailer.version, sizeof trailer.version);
    memcpy(program, trailer.program, sizeof trailer.program);
    memcpy(hash, trailer.hash, HASH_DIGITS);
    if (strspn(hash, "0123456789abcdef") != HASH_DIGITS || program[0] == '\0' || strchr(program, '/') != NULL)
        fail_damaged("its trailer is unreadable");
}

/* List the places for the cache, best first. A named place is an order, not a wish: then there is no other. */
static int cache_candidates(struct cache candidates[3]) {
    int count = 0;
    const char *named = getenv("SPACEBOT_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct stat status;

    if (named != NULL && named[0] != '\0') {
        if (strlen(named) >= MAX_CACHE_PATH) fail("SPACEBOT_CACHE is too long");
        if (named[0] != '/') fail("SPACEBOT_CACHE is '%s'; give a path that starts with '/'", named);
        strcpy(candidates[0].path, named);
        return 1;
    }
    if (xdg != NULL && xdg[0] == '/' && strlen(xdg) < MAX_CACHE_PATH - 64)
        sprintf(candidates[count++].path, "%s/%s", xdg, program);
    /* Under sudo the home is someone else's: leave no files of root there. */
    if (home != NULL && home[0] == '/' && strlen(home) < MAX_CACHE_PATH - 64 && stat(home, &status) == 0 &&
        status.st_uid == geteuid())
        sprintf(candidates[count++].path, "%s/.cache/%s", home, program);
    sprintf(candidates[count++].path, "/var/tmp/%s-%u", program, (unsigned)geteuid());
    return count;
}

/* Make the cache folder if missing, and refuse one that others can write to, since its files become our program. */
static bool open_cache(struct cache *cache, bool is_shared_parent) {
    char partial[MAX_CACHE_PATH];
    struct stat status;
    struct statvfs system;

    for (size_t i = 1; i <= strlen(cache->path); i++) {
        if (cache->path[i] != '/' && cache->path[i] != '\0') continue;
        memcpy(partial, cache->path, i);
        partial[i] = '\0';
        int problem = mkdir(partial, 0700) == 0 ? 0 : errno;
        if (problem != 0 && access(partial, F_OK) != 0) {       /* it may exist all the same, say on a read-only disk */
            note("  %s: cannot make %s: %s\n", cache->path, partial, strerror(problem));
            return false;
        }
    }
    /* Where everybody may create entries, a link could lead anywhere. */
    if ((is_shared_parent ? lstat : stat)(cache->path, &status) != 0 || !S_ISDIR(status.st_mode)) {
        note("  %s: is not a folder\n", cache->path);
        return false;
    }
    if (status.st_uid != geteuid() && status.st_uid != 0) {
        note("  %s: belongs to another user (%u)\n", cache->path, (unsigned)status.st_uid);
        return false;
    }
    if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        note("  %s: others can write to it (chmod go-w would allow it)\n", cache->path);
        return false;
    }
    if (statvfs(cache->path, &system) == 0 && (system.f_flag & ST_NOEXEC) != 0) {
        note("  %s: its file system is mounted noexec\n", cache->path);
        return false;
    }
    cache->is_writable = access(cache->path, W_OK | X_OK) == 0;
    return true;
}

static int open_lock(const struct cache *cache, const char *name) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", cache->path, name);
    return open(path, cache->is_writable ? O_RDWR | O_CREAT | O_NOFOLLOW : O_RDONLY | O_NOFOLLOW, 0600);
}

/* Tell whether a locked file is still the one of that name; tidying may have removed it in between. */
static bool is_current(int lock, const struct cache *cache, const char *name) {
    char path[PATH_SIZE];
    struct stat held, named;
    snprintf(path, sizeof path, "%s/%s", cache->path, name);
    return fstat(lock, &held) == 0 && stat(path, &named) == 0 && held.st_ino == named.st_ino && held.st_dev == named.st_dev;
}

/* Leave the folder complete and locked against removal; the lock stays open over exec on purpose. */
static enum result ensure_tree(const struct cache *cache, int *lock) {
    char name[HASH_DIGITS + 8], tree[PATH_SIZE];

    snprintf(name, sizeof name, "%s.lock", hash);
    snprintf(tree, sizeof tree, "%s/%s", cache->path, hash);
    for (;;) {
        *lock = open_lock(cache, name);
        if (*lock < 0 && !cache->is_writable && is_complete(tree)) return DONE;  /* read-only and ready: nobody tidies it */
        if (*lock < 0) {
            if (cache->is_writable) note("  %s: cannot make %s: %s\n", cache->path, name, strerror(errno));
            else note("  %s: cannot write to it\n", cache->path);
            return UNUSABLE;
        }
        if (flock(*lock, LOCK_SH) != 0) {
            note("  %s: cannot lock files in it: %s\n", cache->path, strerror(errno));
            return UNUSABLE;
        }
        if (is_current(*lock, cache, name)) break;
        close(*lock);
    }
    if (is_complete(tree)) return DONE;
    if (!cache->is_writable) {
        note("  %s: cannot write to it\n", cache->path);
        return UNUSABLE;
    }
    int unpacking = open_lock(cache, "unpack.lock");
    if (unpacking < 0 || flock(unpacking, LOCK_EX) != 0) {
        note("  %s: cannot lock files in it: %s\n", cache->path, strerror(errno));
        return UNUSABLE;
    }
    enum result result = is_complete(tree) ? DONE : repair_tree(cache, tree);
    close(unpacking);
    return result;
}

static void remove_tree(const char *path) {
    char child[PATH_SIZE];
    struct dirent *entry;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        unlink(path);
        return;
    }
    while ((entry = readdir(folder)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= (int)sizeof child) continue;
        if (entry->d_type == DT_DIR) remove_tree(child);
        else if (unlink(child) != 0 && errno == EISDIR) remove_tree(child);  /* file systems that do not tell types */
    }
    closedir(folder);
    rmdir(path);
}

/* Unpack beside the folder, then put it in place, so that no half of it is ever seen under its name. */
static enum result repair_tree(const struct cache *cache, const char *tree) {
    char fresh[PATH_SIZE], broken[PATH_SIZE];

    snprintf(fresh, sizeof fresh, "%s/%s.new", cache->path, hash);
    snprintf(broken, sizeof broken, "%s/%s.broken", cache->path, hash);
    remove_tree(fresh);
    remove_tree(broken);
    if (isatty(STDERR_FILENO)) fprintf(stderr, "%s: first start of this version, unpacking to %s\n", program, cache->path);
    enum result result = unpack(fresh);
    /* No fsync: after a power failure, files whose content was not written yet are shorter, which is_complete sees. */
    if (result == DONE && !is_complete(fresh)) result = DAMAGED;
    if (result == DONE && rename(tree, broken) != 0 && errno != ENOENT) {
        note("  %s: cannot move the damaged %s away: %s\n", cache->path, hash, strerror(errno));
        result = UNUSABLE;
    }
    if (result == DONE && rename(fresh, tree) != 0) {
        note("  %s: cannot rename: %s\n", cache->path, strerror(errno));
        result = UNUSABLE;
    }
    if (result != DONE) remove_tree(fresh);
    else tidy(cache);
    return result;
}

/* Remove other versions that no running program holds, and what interrupted starts left behind. */
static void tidy(const struct cache *cache) {
    struct dirent *entry;
    DIR *folder = opendir(cache->path);
    if (folder == NULL) return;
    while ((entry = readdir(folder)) != NULL) {
        char name[HASH_DIGITS + 8], path[PATH_SIZE];
        static const char *const suffixes[] = {"", ".new", ".broken", ".lock"};
        if (strspn(entry->d_name, "0123456789abcdef") != HASH_DIGITS) continue;
        bool is_ours = strncmp(entry->d_name, hash, HASH_DIGITS) == 0;
        snprintf(name, sizeof name, "%.64s.lock", entry->d_name);
        int lock = is_ours ? -1 : open_lock(cache, name);
        bool is_free = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0;
        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
            bool is_leftover = is_ours && (strcmp(suffixes[i], ".new") == 0 || strcmp(suffixes[i], ".broken") == 0);
            snprintf(path, sizeof path, "%s/%.64s%s", cache->path, entry->d_name, suffixes[i]);
            if (is_free || is_leftover) remove_tree(path);
        }
        if (lock >= 0) close(lock);
    }
    closedir(folder);
}

/* Add up the sizes in the index, and a tenth for what the file system needs itself. */
static uint64_t megabytes_needed(void) {
    const char *line = (const char *)image + trailer.payload_offset + trailer.payload_length;
    const char *end = line + trailer.index_length;
    uint64_t bytes = 0;
    while (line != NULL && end - line > 2) {
        bytes += strtoull(line + 2, NULL, 10);
        line = memchr(line, '\n', (size_t)(end - line));
        if (line != NULL) line++;
    }
    return ((bytes + bytes / 10) >> 20) + 1;
}

/* Compare the folder with the index: each line is 'f' or 'l', the size in bytes, the name. About a millisecond. */
static bool is_complete(const char *tree) {
    const char *line = (const char *)image + trailer.payload_offset + trailer.payload_length;
    const char *end = line + trailer.index_length;
    int folder = open(tree, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool is_good = folder >= 0 && line < end;

    while (is_good && line < end) {
        char name[PATH_SIZE];
        struct stat status;
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const char *space = stop == NULL || stop - line < 4 ? NULL : memchr(line + 2, ' ', (size_t)(stop - line - 2));
        if (space == NULL || stop - space > (ptrdiff_t)sizeof name) {
            is_good = false;
            break;
        }
        memcpy(name, space + 1, (size_t)(stop - space - 1));
        name[stop - space - 1] = '\0';
        is_good = fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
                  (*line == 'f' ? S_ISREG(status.st_mode) : S_ISLNK(status.st_mode)) &&
                  (uint64_t)status.st_size == strtoull(line + 2, NULL, 10);
        line = stop + 1;
    }
    if (folder >= 0) close(folder);
    return is_good;
}

/* A tar reader that is fed piece by piece. It knows what pack.py writes: ustar, files, folders, links. */
struct reader {
    const char *folder;
    unsigned char header[BLOCK];
    size_t header_used;
    int file;                               /* being written, or -1 */
    uint64_t left, padding;                 /* bytes of the file, then of the fill to a whole block */
    bool is_ended;                          /* saw an empty header */
    bool is_code;                           /* the file is x86 code that pack.py has translated */
    uint64_t size, done;                    /* of that file, and how much of it is in earlier blocks, bytes */
    unsigned char *block;                   /* of X86_BLOCK bytes: code on its way into the file */
    size_t block_used;
};

static uint64_t octal(const unsigned char *field, size_t width) {
    uint64_t value = 0;
    for (size_t i = 0; i < width && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (uint64_t)(field[i] - '0');
    return value;
}

static enum result write_problem(const char *folder, const char *path) {
    int problem = errno;
    struct statvfs system;
    if (problem == ENOSPC || problem == EDQUOT) {
        char cache[PATH_SIZE];
        snprintf(cache, sizeof cache, "%.*s", (int)(strrchr(folder, '/') - folder), folder);
        remove_tree(folder);                /* first, so that what this attempt took counts as free */
        uint64_t free_bytes = statvfs(cache, &system) == 0 ? (uint64_t)system.f_bavail * system.f_frsize : 0;
        note("  %s: the disk is full: %llu MB free, %llu MB needed\n", cache,
             (unsigned long long)(free_bytes >> 20), (unsigned long long)megabytes_needed());
    } else {
        note("  cannot write %s: %s\n", path, strerror(problem));
    }
    return UNUSABLE;
}

/* Damage is noticed only at the end of the frame, so a name is not trusted before. */
static bool leads_outside(const char *name) {
    size_t length = strlen(name);
    return name[0] == '/' || strncmp(name, "../", 3) == 0 || strstr(name, "/../") != NULL || strcmp(name, "..") == 0 ||
           (length > 3 && strcmp(name + length - 3, "/..") == 0);
}

static enum result read_entry(struct reader *reader) {
    const unsigned char *header = reader->header;
    char name[257], path[PATH_SIZE], target[101];
    uint64_t sum = 0;

    for (size_t i = 0; i < BLOCK; i++) sum += (i >= 148 && i < 156) ? ' ' : header[i];
    if (sum == 8 * ' ') {
        reader->is_ended = true;
        return DONE;
    }
    if (sum != octal(header + 148, 8)) return DAMAGED;
    if (header[345] != '\0') snprintf(name, sizeof name, "%.155s/%.100s", (const char *)header + 345, (const char *)header);
    else snprintf(name, sizeof name, "%.100s", (const char *)header);
    if (leads_outside(name)) return DAMAGED;
    snprintf(path, sizeof path, "%s/%s", reader->folder, name);
    mode_t mode = (mode_t)(octal(header + 100, 8) & 0755);

    switch (header[156]) {
    case '5':
        if (mkdir(path, 0755) != 0 && errno != EEXIST) return write_problem(reader->folder, path);
        return DONE;
    case '2':
        snprintf(target, sizeof target, "%.100s", (const char *)header + 157);
        if (symlink(target, path) != 0) return write_problem(reader->folder, path);
        return DONE;
    case '0':
        reader->file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
        if (reader->file < 0) return write_problem(reader->folder, path);
        reader->left = octal(header + 124, 12);
        reader->padding = (BLOCK - reader->left % BLOCK) % BLOCK;
        reader->is_code = strncmp((const char *)header + 265, CODE_MARK, 32) == 0;
        reader->size = reader->left;
        reader->done = reader->block_used = 0;
        if (reader->left == 0) {
            close(reader->file);
            reader->file = -1;
        }
        return DONE;
    default:
        return DAMAGED;
    }
}

/* Write all of it. False with errno set when that fails. */
static bool write_all(int file, const unsigned char *bytes, size_t count) {
    while (count > 0) {
        ssize_t written = write(file, bytes, count);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return false;
        bytes += written;
        count -= (size_t)written;
    }
    return true;
}

/* Take bytes of the current file; code waits until its block is whole. */
static bool take(struct reader *reader, const unsigned char *bytes, size_t count) {
    reader->left -= count;
    if (!reader->is_code) return write_all(reader->file, bytes, count);
    while (count > 0) {
        size_t used = X86_BLOCK - reader->block_used < count ? X86_BLOCK - reader->block_used : count;
        memcpy(reader->block + reader->block_used, bytes, used);
        reader->block_used += used;
        bytes += used;
        count -= used;
        if (reader->block_used < X86_BLOCK && (reader->left > 0 || count > 0)) continue;
        x86_translate(reader->block, reader->block_used, (int64_t)reader->done, (int64_t)reader->size, false);
        if (!write_all(reader->file, reader->block, reader->block_used)) return false;
        reader->done += reader->block_used;
        reader->block_used = 0;
    }
    return true;
}

static enum result feed(struct reader *reader, const unsigned char *bytes, size_t count) {
    while (count > 0 && !reader->is_ended) {
        size_t used;
        if (reader->left > 0) {
            used = reader->left < count ? (size_t)reader->left : count;
            if (!take(reader, bytes, used)) return write_problem(reader->folder, "a file");
            if (reader->left == 0) {
                int closed = close(reader->file);
                reader->file = -1;
                if (closed != 0) return write_problem(reader->folder, "a file");   /* network disks tell only now */
            }
        } else if (reader->padding > 0) {
            used = reader->padding < count ? (size_t)reader->padding : count;
            reader->padding -= used;
        } else {
            used = BLOCK - reader->header_used < count ? BLOCK - reader->header_used : count;
            memcpy(reader->header + reader->header_used, bytes, used);
            reader->header_used += used;
            if (reader->header_used == BLOCK) {
                reader->header_used = 0;
                enum result result = read_entry(reader);
                if (result != DONE) return result;
            }
        }
        bytes += used;
        count -= used;
    }
    return DONE;
}

/* Unpack the payload into a new folder. Reads to the end of the frame, where zstd compares its checksum. */
static enum result unpack(const char *folder) {
    struct reader reader = {.folder = folder, .file = -1, .block = malloc(X86_BLOCK)};
    ZSTD_inBuffer input = {image + trailer.payload_offset, (size_t)trailer.payload_length, 0};
    ZSTD_DCtx *context = ZSTD_createDCtx();
    unsigned char *output = malloc(OUTPUT_SIZE);
    enum result result = DONE;
    size_t hint = 1;

    if (context == NULL || output == NULL || reader.block == NULL) fail("not enough memory to unpack");
    if (mkdir(folder, 0755) != 0) result = write_problem(folder, folder);
    while (result == DONE && hint != 0) {
        ZSTD_outBuffer piece = {output, OUTPUT_SIZE, 0};
        size_t before = input.pos;
        hint = ZSTD_decompressStream(context, &piece, &input);
        if (ZSTD_isError(hint) || (hint != 0 && piece.pos == 0 && input.pos == before)) result = DAMAGED;
        else result = feed(&reader, output, piece.pos);
    }
    if (result == DONE && (!reader.is_ended || input.pos != input.size)) result = DAMAGED;
    if (reader.file >= 0) close(reader.file);
    free(output);
    free(reader.block);
    ZSTD_freeDCtx(context);
    return result;
}

/* Replace this process by the program. Returns only when that fails, with the reason noted. */
static void become_program(const struct cache *cache, char **argv) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s/%s", cache->path, hash, program);
    setenv("SPACEBOT_EXECUTABLE", executable, 1);
    execv(path, argv);
    note("  cannot run %s: %s%s\n", path, strerror(errno),
         errno == EACCES ? " (a file system mounted noexec, or a security policy)" : "");
}
