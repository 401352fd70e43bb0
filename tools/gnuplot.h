/* gnuplot.h: a picture drawn by gnuplot, where it is installed.

   The script, with its data inside as here-documents, is gnuplot's standard input, and what it draws its
   standard output, which becomes the file: so no name of a file stands in a script, and no shell reads one.
   gnuplot is a convenience: whoever calls this must do without it.

   Include after humpback.h's implementation, or link with it. */

#ifndef TOOL_GNUPLOT_H
#define TOOL_GNUPLOT_H

#include "../humpback.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* The first line of a script for a PNG of w x h pixels: drawn by cairo where gnuplot was built with it. */
static void gnuplot_png(hbk_text *script, int w, int h, int font)
{
    hbk_text_printf(script,
                    "if (strstrt(GPVAL_TERMINALS, ' pngcairo ')) set terminal pngcairo size %d,%d "
                    "font 'sans,%d'; else set terminal png size %d,%d\n",
                    w, h, font, w, h);
}

/* A text as a string of gnuplot's; give it to commands with `noenhanced`. */
static void gnuplot_quote(hbk_text *script, const char *s)
{
    hbk_text_add(script, "'");
    for (; *s; s++) {
        if (*s == '\'') hbk_text_add(script, "''");
        else if ((unsigned char)*s < ' ' || *s == 127) hbk_text_add(script, "?");
        else hbk_text_append(script, s, 1);
    }
    hbk_text_add(script, "'");
}

/* Runs gnuplot from `in` to `out`; true if it was there and ended well. What it says goes nowhere. */
static bool gnuplot_spawn(int in, int out)
{
    char name[] = "gnuplot", defaults[] = "-d"; /* -d: without the user's own settings */
    char *argv[] = {name, defaults, NULL};
    posix_spawn_file_actions_t files;
    pid_t pid;
    int status = -1;
    if (posix_spawn_file_actions_init(&files) != 0) return false;
    bool ok = posix_spawn_file_actions_adddup2(&files, in, 0) == 0 &&
              posix_spawn_file_actions_adddup2(&files, out, 1) == 0 &&
              posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0) == 0 &&
              posix_spawnp(&pid, name, &files, NULL, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&files);
    while (ok && waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) ok = false;
    return ok && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Draws the script's picture into the file `path`, which is whole or as it was. *drawn is false, and that is
   no error, where gnuplot is not on the PATH or could not draw it. */
static bool tool_gnuplot(const hbk_text *script, const char *path, bool *drawn, hbk_error *err)
{
    hbk_file picture;
    struct stat made;
    *drawn = false;
    FILE *in = tmpfile();
    if (!in) return true;
    bool ok = fwrite(script->data, 1, script->len, in) == script->len && fflush(in) == 0;
    rewind(in);
    if (!hbk_file_begin(&picture, path, err)) {
        fclose(in);
        return false;
    }
    ok = ok && gnuplot_spawn(fileno(in), picture.fd) && fstat(picture.fd, &made) == 0 && made.st_size > 0;
    fclose(in);
    if (ok) return *drawn = hbk_file_commit(&picture, err);
    hbk_file_abandon(&picture);
    return true;
}

#endif /* TOOL_GNUPLOT_H */
