/* curve.h: the metrics.jsonl of a finetuned folder -> its loss.svg and, where there is gnuplot, loss.png.

   Two drawings over one axis of steps. The upper one has the loss of a target token: of every step or, of
   long runs, of equal stretches of steps (grey), their running mean, and the validation loss where there was
   one, its lowest point ringed: those are the weights that were kept. The lower one has the learning rate.
   The axis of losses spans what was measured and need not begin at 0.

   The SVG stands alone, its style inside, light or dark as the reader's system is; the PNG, for what shows no
   SVG, is the same drawing on a light ground. Words are report.h's. */

#ifndef TOOL_CURVE_H
#define TOOL_CURVE_H

#include "gnuplot.h"
#include "report.h"

enum { CURVE_POINTS = 400 }; /* of a line; more steps are averaged */

/* What metrics.jsonl holds, a number for every row; NAN where there was no validation. */
typedef struct curve_rows {
    double *step, *loss, *val, *lr;
    hbk_int n, n_val;
    hbk_int first, best, last; /* rows of the first, lowest and last validation loss; -1: none */
} curve_rows;

/* A drawing's place in the picture, and what its sides stand for. */
typedef struct curve_frame {
    double y, height, low, high, tick, steps;
} curve_frame;

enum { CURVE_LEFT = 58, CURVE_WIDTH = 530, CURVE_PAGE = 720, CURVE_TALL = 436 };

static double curve_at_x(const curve_frame *f, double step)
{
    return CURVE_LEFT + CURVE_WIDTH * step / f->steps;
}

static double curve_at_y(const curve_frame *f, double value)
{
    return f->y + f->height * (f->high - value) / (f->high - f->low);
}

static double curve_number(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

static bool curve_row(curve_rows *r, const json_t *row, const char *path, hbk_error *err)
{
    hbk_int i = r->n;
    r->step[i] = curve_number(row, "step");
    r->loss[i] = curve_number(row, "loss");
    r->val[i] = curve_number(row, "val_loss");
    r->lr[i] = curve_number(row, "lr");
    if (isnan(r->step[i] + r->loss[i] + r->lr[i]))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, i + 1, "a row without step, loss or lr");
    r->n++;
    if (isnan(r->val[i])) return true;
    if (r->n_val++ == 0) r->first = i;
    if (r->best < 0 || r->val[i] < r->val[r->best]) r->best = i;
    r->last = i;
    return true;
}

/* Reads the complete rows; the arrays are one block, freed through `step`. */
static bool curve_read(const char *path, curve_rows *r, hbk_error *err)
{
    hbk_int most = 0;
    json_t *row;
    memset(r, 0, sizeof *r);
    r->first = r->best = r->last = -1;
    if (!hbk_jsonl_count(path, &most, err)) return false;
    if (most < 1)
        return hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                           "holds no step: rows are written with each checkpoint and at the end");
    double *block = (double *)hbk_alloc(NULL, most, 4 * sizeof *block, err);
    hbk_jsonl_reader *in = block ? hbk_jsonl_open(path, NULL, err) : NULL;
    bool ok = in != NULL;
    if (ok) {
        r->step = block;
        r->loss = block + most;
        r->val = block + 2 * most;
        r->lr = block + 3 * most;
    }
    while (ok && r->n < most) {
        int got = hbk_jsonl_next(in, &row, err);
        if (got == 0) break;
        ok = got > 0 && curve_row(r, row, path, err);
    }
    hbk_jsonl_close(in);
    if (ok && r->n == 0) ok = hbk_fail_at(err, HBK_ERROR_DATA, path, 0, "holds blank lines only");
    if (!ok) hbk_free(NULL, block);
    return ok;
}

/* ---- drawing ------------------------------------------------------------------------------------------- */

/* A point of a line through the rows' values: the means over a stretch that begins at row `at`, of the values
   over the `reach` rows on both sides as well. Returns the row where the next stretch begins. */
static hbk_int curve_point(const curve_rows *r, const double *values, hbk_int reach, hbk_int at, double *step,
                           double *value)
{
    hbk_int end = HBK__MIN(at + (r->n + CURVE_POINTS - 1) / CURVE_POINTS, r->n);
    hbk_int from = HBK__MAX(0, at - reach), to = HBK__MIN(r->n, end + reach);
    *step = *value = 0;
    for (hbk_int i = from; i < to; i++) *value += values[i] / (double)(to - from);
    for (hbk_int i = at; i < end; i++) *step += r->step[i] / (double)(end - at);
    return end;
}

static void curve_line(hbk_text *t, const curve_frame *f, const curve_rows *r, const double *values,
                       hbk_int reach, const char *kind)
{
    double step, value;
    hbk_text_printf(t, "<path class=\"%s\" d=\"", kind);
    for (hbk_int at = 0, end; at < r->n; at = end) {
        end = curve_point(r, values, reach, at, &step, &value);
        hbk_text_printf(t, "%c%.1f %.1f", at ? 'L' : 'M', curve_at_x(f, step), curve_at_y(f, value));
    }
    hbk_text_add(t, "\"/>\n");
}

/* The validations, a point each, joined; a ring around the lowest. */
static void curve_validations(hbk_text *t, const curve_frame *f, const curve_rows *r)
{
    if (r->n_val == 0) return;
    hbk_text_add(t, "<path class=\"val\" d=\"");
    for (hbk_int i = r->first; i <= r->last; i++)
        if (!isnan(r->val[i]))
            hbk_text_printf(t, "%c%.1f %.1f", i > r->first ? 'L' : 'M', curve_at_x(f, r->step[i]),
                            curve_at_y(f, r->val[i]));
    hbk_text_add(t, "\"/>\n");
    for (hbk_int i = r->first; i <= r->last && r->n_val <= 60; i++)
        if (!isnan(r->val[i]))
            hbk_text_printf(t, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n",
                            curve_at_x(f, r->step[i]), curve_at_y(f, r->val[i]));
    hbk_text_printf(t, "<circle class=\"ring\" cx=\"%.1f\" cy=\"%.1f\" r=\"6\"/>\n",
                    curve_at_x(f, r->step[r->best]), curve_at_y(f, r->val[r->best]));
}

/* Lines and figures at every tick of the left side; the name of what is measured stands above it. */
static void curve_axis(hbk_text *t, const curve_frame *f, const char *name)
{
    hbk_int n = (hbk_int)floor((f->high - f->low) / f->tick + 0.5);
    for (hbk_int i = 0; i <= n; i++) {
        double v = f->low + (double)i * f->tick, y = curve_at_y(f, v);
        if (fabs(v) < f->tick / 1000) v = 0; /* no -0 and no 1e-17 */
        hbk_text_printf(t, "<path class=\"%s\" d=\"M%d %.1fH%d\"/>", i ? "grid" : "axis", CURVE_LEFT, y,
                        CURVE_LEFT + CURVE_WIDTH);
        hbk_text_printf(t, "<text class=\"y\" x=\"%d\" y=\"%.1f\">%.4g</text>\n", CURVE_LEFT - 8, y + 4, v);
    }
    hbk_text_printf(t, "<text x=\"%d\" y=\"%.1f\">%s</text>\n", CURVE_LEFT, f->y - 9, name);
}

static void curve_steps(hbk_text *t, const curve_frame *f)
{
    double tick = fmax(1, report_tick(f->steps, 6)), y = f->y + f->height;
    for (double v = 0; v <= f->steps * 1.001; v += tick)
        hbk_text_printf(t, "<text class=\"x\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", curve_at_x(f, v), y + 18,
                        report_count((hbk_int)v).s);
    hbk_text_printf(t, "<text x=\"%d\" y=\"%.1f\">step</text>\n", CURVE_LEFT + CURVE_WIDTH + 16, y + 18);
}

/* Sides at round numbers around all that was measured. */
static curve_frame curve_frame_of(const double *a, const double *b, hbk_int n, double steps, bool from_zero)
{
    curve_frame f = {0, 0, INFINITY, -INFINITY, 1, steps};
    for (hbk_int i = 0; i < n; i++) {
        f.low = fmin(f.low, fmin(a[i], b[i])); /* fmin and fmax pass over a NAN */
        f.high = fmax(f.high, fmax(a[i], b[i]));
    }
    if (from_zero) f.low = 0;
    if (!(f.high > f.low)) f.high = f.low + fmax(fabs(f.low), 1e-12); /* one step, or a constant */
    f.tick = report_tick(f.high - f.low, from_zero ? 2 : 5);
    f.low = f.tick * floor(f.low / f.tick + 1e-9);
    f.high = f.tick * ceil(f.high / f.tick - 1e-9);
    return f;
}

/* Mean of the last tenth of the training losses, and one step at least: what the line ends at. */
static double curve_last(const curve_rows *r)
{
    hbk_int n = r->n / 10 + 1;
    double sum = 0;
    for (hbk_int i = r->n - n; i < r->n; i++) sum += r->loss[i];
    return sum / (double)n;
}

static const char *const curve_style[] = {
    "svg{color-scheme:light dark;--ground:#fcfcfa;--ink:#1c2225;--soft:#5a656a;--line:#d8dddf;",
    "--fill:#c3cccf;--accent:#0b6785;--val:#b34a00}\n",
    "@media(prefers-color-scheme:dark){svg{--ground:#13181b;--ink:#e3e7e8;--soft:#98a5ab;--line:#303a3f;",
    "--fill:#465258;--accent:#5dbad8;--val:#e9a75c}}\n",
    "rect{fill:var(--ground)}\n",
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;",
    "font-variant-numeric:tabular-nums lining-nums;fill:var(--soft)}\n",
    ".title{font-size:16px;font-weight:650;fill:var(--ink)}\n",
    ".x{text-anchor:middle}.y{text-anchor:end}\n",
    ".of-line{font-weight:600;fill:var(--accent)}.of-val{font-weight:600;fill:var(--val)}\n",
    "path{fill:none;stroke-width:1;stroke-linejoin:round}\n",
    ".axis{stroke:var(--soft)}.grid{stroke:var(--line)}.raw{stroke:var(--fill)}\n",
    ".line{stroke:var(--accent);stroke-width:2}.val{stroke:var(--val);stroke-width:2}\n",
    ".rate{stroke:var(--soft);stroke-width:1.5}\n",
    ".dot{fill:var(--val)}.ring{fill:none;stroke:var(--val);stroke-width:1.5}\n"};

static void curve_head(hbk_text *t, const curve_rows *r, const char *name)
{
    hbk_text_add(t, "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" ");
    hbk_text_printf(t, "viewBox=\"0 0 %d %d\">\n<title>", CURVE_PAGE, CURVE_TALL);
    report_escape(t, name);
    hbk_text_add(t, ": loss by step</title>\n<style>\n");
    for (size_t i = 0; i < sizeof curve_style / sizeof curve_style[0]; i++) hbk_text_add(t, curve_style[i]);
    hbk_text_printf(t, "</style>\n<rect width=\"%d\" height=\"%d\"/>\n", CURVE_PAGE, CURVE_TALL);
    hbk_text_printf(t, "<text class=\"title\" x=\"%d\" y=\"30\">", CURVE_LEFT);
    report_escape(t, name);
    hbk_text_printf(t, "</text>\n<text x=\"%d\" y=\"50\">%s steps: training loss %.3f &#8594; %.3f",
                    CURVE_LEFT, report_count(r->n).s, r->loss[0], curve_last(r));
    if (r->n_val > 0)
        hbk_text_printf(t, ", validation loss %.3f &#8594; %.3f; lowest %.3f in step %s", r->val[r->first],
                        r->val[r->last], r->val[r->best], report_count((hbk_int)r->step[r->best]).s);
    hbk_text_add(t, "</text>\n");
}

/* Where the names of the two lines stand: where those end, apart from each other. */
static void curve_ends(const curve_frame *f, const curve_rows *r, double *y, double *v)
{
    *y = *v = curve_at_y(f, curve_last(r));
    if (r->n_val == 0) return;
    *v = curve_at_y(f, r->val[r->last]);
    if (fabs(*v - *y) < 15) { /* the upper one goes up */
        double middle = (*v + *y) / 2;
        *y = middle + (*y >= *v ? 7.5 : -7.5);
        *v = 2 * middle - *y;
    }
}

static void curve_names(hbk_text *t, const curve_frame *f, const curve_rows *r)
{
    double x = CURVE_LEFT + CURVE_WIDTH + 9, y, v;
    curve_ends(f, r, &y, &v);
    hbk_text_printf(t, "<text class=\"of-line\" x=\"%.1f\" y=\"%.1f\">training %.3f</text>\n", x, y + 4,
                    curve_last(r));
    if (r->n_val > 0)
        hbk_text_printf(t, "<text class=\"of-val\" x=\"%.1f\" y=\"%.1f\">validation %.3f</text>\n", x, v + 4,
                        r->val[r->last]);
}

/* The two drawings' frames, side by side over one axis of steps. */
static void curve_frames(const curve_rows *r, curve_frame *loss, curve_frame *rate)
{
    double steps = fmax(1, r->step[r->n - 1]);
    *loss = curve_frame_of(r->loss, r->val, r->n, steps, false);
    *rate = curve_frame_of(r->lr, r->lr, r->n, steps, true);
    loss->y = 84;
    loss->height = 226;
    rate->y = 346;
    rate->height = 56;
}

static void curve_draw(hbk_text *t, const curve_rows *r, const char *name)
{
    curve_frame f, g;
    curve_frames(r, &f, &g);
    curve_head(t, r, name);
    curve_axis(t, &f, "loss of a target token (nats)");
    curve_line(t, &f, r, r->loss, 0, "raw");
    curve_line(t, &f, r, r->loss, r->n / 20, "line");
    curve_validations(t, &f, r);
    curve_names(t, &f, r);
    curve_axis(t, &g, "learning rate");
    curve_line(t, &g, r, r->lr, 0, "rate");
    curve_steps(t, &g);
    hbk_text_add(t, "</svg>\n");
}

/* ---- the same for gnuplot ------------------------------------------------------------------------------ */

/* Data of a line as a here-document. */
static void curve_script_line(hbk_text *t, const char *name, const curve_rows *r, const double *values,
                              hbk_int reach)
{
    double step, value;
    hbk_text_printf(t, "$%s << END\n", name);
    for (hbk_int at = 0; at < r->n;) {
        at = curve_point(r, values, reach, at, &step, &value);
        hbk_text_printf(t, "%.8g %.8g\n", step, value);
    }
    hbk_text_add(t, "END\n");
}

/* A point of the SVG as a place on gnuplot's screen, which is counted in shares of it, from below. */
static void curve_script_at(hbk_text *t, double x, double y)
{
    hbk_text_printf(t, " at screen %g,%g left", x / CURVE_PAGE, 1 - y / CURVE_TALL);
}

/* Where a drawing stands, and what its sides are. */
static void curve_script_frame(hbk_text *t, const curve_frame *f, const char *title)
{
    hbk_text_printf(t, "set lmargin at screen %g; set rmargin at screen %g\n",
                    CURVE_LEFT / (double)CURVE_PAGE, (CURVE_LEFT + CURVE_WIDTH) / (double)CURVE_PAGE);
    hbk_text_printf(t, "set tmargin at screen %g; set bmargin at screen %g\n", 1 - f->y / CURVE_TALL,
                    1 - (f->y + f->height) / CURVE_TALL);
    hbk_text_printf(t, "set xrange [0:%.9g]; set yrange [%.9g:%.9g]; set ytics %.9g\n", f->steps, f->low,
                    f->high, f->tick);
    hbk_text_printf(t, "set label 1 '%s'", title);
    curve_script_at(t, CURVE_LEFT, f->y - 13);
    hbk_text_add(t, " tc rgb '#5a656a'\n");
}

static void curve_script_words(hbk_text *t, const curve_frame *f, const curve_rows *r, const char *name)
{
    double x = CURVE_LEFT + CURVE_WIDTH + 9, y, v;
    curve_ends(f, r, &y, &v);
    hbk_text_add(t, "set label 2 ");
    gnuplot_quote(t, name);
    curve_script_at(t, CURVE_LEFT, 25);
    hbk_text_printf(t, " noenhanced font ',21' tc rgb '#1c2225'\nset label 3 '%s steps: training loss "
                       "%.3f to %.3f", report_count(r->n).s, r->loss[0], curve_last(r));
    if (r->n_val > 0)
        hbk_text_printf(t, ", validation loss %.3f to %.3f; lowest %.3f in step %s", r->val[r->first],
                        r->val[r->last], r->val[r->best], report_count((hbk_int)r->step[r->best]).s);
    hbk_text_add(t, "'");
    curve_script_at(t, CURVE_LEFT, 46);
    hbk_text_printf(t, " tc rgb '#5a656a'\nset label 4 'training %.3f'", curve_last(r));
    curve_script_at(t, x, y);
    hbk_text_add(t, " tc rgb '#0b6785'\n");
    if (r->n_val == 0) return;
    hbk_text_printf(t, "set label 5 'validation %.3f'", r->val[r->last]);
    curve_script_at(t, x, v);
    hbk_text_add(t, " tc rgb '#b34a00'\n");
}

/* What is drawn, as here-documents. */
static void curve_script_data(hbk_text *t, const curve_rows *r)
{
    curve_script_line(t, "raw", r, r->loss, 0);
    curve_script_line(t, "line", r, r->loss, r->n / 20);
    curve_script_line(t, "rate", r, r->lr, 0);
    if (r->n_val == 0) return;
    hbk_text_add(t, "$val << END\n");
    for (hbk_int i = r->first; i <= r->last; i++)
        if (!isnan(r->val[i])) hbk_text_printf(t, "%.8g %.8g\n", r->step[i], r->val[i]);
    hbk_text_printf(t, "END\n$best << END\n%.8g %.8g\nEND\n", r->step[r->best], r->val[r->best]);
}

static void curve_script(hbk_text *t, const curve_rows *r, const char *name)
{
    curve_frame f, g;
    curve_frames(r, &f, &g);
    gnuplot_png(t, 2 * CURVE_PAGE, 2 * CURVE_TALL, 17);
    curve_script_data(t, r);
    hbk_text_add(t, "set multiplot\nset border 1 lc rgb '#5a656a'\nset tics textcolor rgb '#5a656a' scale 0\n"
                    "set grid ytics lt 1 lw 1 lc rgb '#d8dddf'\nset xtics nomirror\nset format x ''\n"
                    "unset key\n");
    curve_script_frame(t, &f, "loss of a target token (nats)");
    curve_script_words(t, &f, r, name);
    hbk_text_add(t, "plot $raw with lines lw 2 lc rgb '#c3cccf', $line with lines lw 4 lc rgb '#0b6785'");
    if (r->n_val > 0)
        hbk_text_printf(t, ", $val with lines lw 4 lc rgb '#b34a00', $val with points pt 7 ps %g "
                           "lc rgb '#b34a00', $best with points pt 6 ps 3 lw 2 lc rgb '#b34a00'",
                        r->n_val <= 60 ? 0.9 : 0);
    hbk_text_printf(t, "\nunset label\nset format x '%%.0f'\nset label 6 'step'");
    curve_script_at(t, CURVE_LEFT + CURVE_WIDTH + 22, g.y + g.height + 14);
    hbk_text_add(t, " tc rgb '#5a656a'\n");
    curve_script_frame(t, &g, "learning rate");
    hbk_text_add(t, "plot $rate with lines lw 3 lc rgb '#5a656a'\nunset multiplot\n");
}

/* ---- the files ----------------------------------------------------------------------------------------- */

/* DIR without what stands before its last part. */
static void curve_name(char name[512], const char *dir)
{
    snprintf(name, 512, "%s", dir);
    for (size_t n = strlen(name); n > 1 && name[n - 1] == '/'; n--) name[n - 1] = 0;
    const char *slash = strrchr(name, '/');
    if (slash && slash[1]) memmove(name, slash + 1, strlen(slash + 1) + 1);
}

static bool curve_write_svg(const curve_rows *r, const char *name, const char *path, hbk_error *err)
{
    hbk_text svg = {NULL, NULL, 0, 0, false};
    curve_draw(&svg, r, name);
    bool ok = hbk_text_ok(&svg, err) && hbk_file_write(path, svg.data, svg.len, err);
    hbk_text_free(&svg);
    return ok;
}

static bool curve_write_png(const curve_rows *r, const char *name, const char *path, bool *drawn,
                            hbk_error *err)
{
    hbk_text script = {NULL, NULL, 0, 0, false};
    *drawn = false;
    curve_script(&script, r, name);
    bool ok = hbk_text_ok(&script, err) && tool_gnuplot(&script, path, drawn, err);
    hbk_text_free(&script);
    return ok;
}

/* Draws DIR/metrics.jsonl: as DIR/loss.svg and, where there is gnuplot, DIR/loss.png; or as the one file
   `out`, a PNG if it is named so. `written`, if not NULL, is filled with what was written, in words. */
static bool tool_curve(const char *dir, const char *out, char written[1100], hbk_error *err)
{
    char metrics[512], svg[512], png[512], name[512];
    curve_rows r;
    bool drawn = false, only_png = out && strlen(out) > 4 && strcmp(out + strlen(out) - 4, ".png") == 0;
    if (!hbk_path(metrics, dir, "metrics.jsonl", err) || !hbk_path(svg, dir, "loss.svg", err) ||
        !hbk_path(png, dir, "loss.png", err) || !curve_read(metrics, &r, err))
        return false;
    curve_name(name, dir);
    bool ok = only_png || curve_write_svg(&r, name, out ? out : svg, err);
    if (ok && (only_png || !out)) ok = curve_write_png(&r, name, out ? out : png, &drawn, err);
    if (ok && only_png && !drawn)
        ok = hbk_fail_at(err, HBK_ERROR_FILE, out, 0,
                         "a PNG needs gnuplot, which is not on the PATH or failed; a .svg needs nothing");
    if (ok && !out && !drawn) unlink(png); /* an old one would be of other steps */
    bool both = drawn && !out;
    if (ok && written)
        snprintf(written, 1100, "%s%s%s", out ? out : svg, both ? " and " : "", both ? png : "");
    hbk_free(NULL, r.step);
    return ok;
}

#endif /* TOOL_CURVE_H */
