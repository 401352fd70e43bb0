/* curve.h: the metrics.jsonl of a finetuned folder -> its loss.svg.

   Two drawings over one axis of steps. The upper one has the loss of a target token: of every step or, of
   long runs, of equal stretches of steps (grey), their running mean, and the validation loss where there was
   one, its lowest point ringed: those are the weights that were kept. The lower one has the learning rate.
   The axis of losses spans what was measured and need not begin at 0.

   The file stands alone, its style inside, light or dark as the reader's system is. Words are report.h's. */

#ifndef TOOL_CURVE_H
#define TOOL_CURVE_H

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

/* A line through the rows' values: through means of equal stretches of rows, if they are many, each over the
   `reach` rows on both sides as well. */
static void curve_line(hbk_text *t, const curve_frame *f, const curve_rows *r, const double *values,
                       hbk_int reach, const char *kind)
{
    hbk_int stretch = (r->n + CURVE_POINTS - 1) / CURVE_POINTS;
    hbk_text_printf(t, "<path class=\"%s\" d=\"", kind);
    for (hbk_int at = 0; at < r->n; at += stretch) {
        hbk_int end = HBK__MIN(at + stretch, r->n);
        hbk_int from = HBK__MAX(0, at - reach), to = HBK__MIN(r->n, end + reach);
        double sum = 0, where = 0;
        for (hbk_int i = from; i < to; i++) sum += values[i];
        for (hbk_int i = at; i < end; i++) where += r->step[i];
        hbk_text_printf(t, "%c%.1f %.1f", at ? 'L' : 'M', curve_at_x(f, where / (double)(end - at)),
                        curve_at_y(f, sum / (double)(to - from)));
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

/* The names of the two lines where they end, apart from each other. */
static void curve_names(hbk_text *t, const curve_frame *f, const curve_rows *r)
{
    double x = CURVE_LEFT + CURVE_WIDTH + 9, y = curve_at_y(f, curve_last(r)), v = y;
    if (r->n_val > 0) v = curve_at_y(f, r->val[r->last]);
    if (r->n_val > 0 && fabs(v - y) < 15) { /* the upper one goes up */
        double middle = (v + y) / 2;
        y = middle + (y >= v ? 7.5 : -7.5);
        v = 2 * middle - y;
    }
    hbk_text_printf(t, "<text class=\"of-line\" x=\"%.1f\" y=\"%.1f\">training %.3f</text>\n", x, y + 4,
                    curve_last(r));
    if (r->n_val > 0)
        hbk_text_printf(t, "<text class=\"of-val\" x=\"%.1f\" y=\"%.1f\">validation %.3f</text>\n", x, v + 4,
                        r->val[r->last]);
}

static void curve_draw(hbk_text *t, const curve_rows *r, const char *name)
{
    double steps = fmax(1, r->step[r->n - 1]);
    curve_frame f = curve_frame_of(r->loss, r->val, r->n, steps, false);
    curve_frame g = curve_frame_of(r->lr, r->lr, r->n, steps, true);
    f.y = 84;
    f.height = 226;
    g.y = 346;
    g.height = 56;
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

/* Writes DIR/loss.svg, or `out` if that is not NULL, from DIR/metrics.jsonl. */
static bool tool_curve(const char *dir, const char *out, hbk_error *err)
{
    char metrics[512], picture[512], name[512];
    curve_rows r;
    if (!hbk_path(metrics, dir, "metrics.jsonl", err) || !hbk_path(picture, dir, "loss.svg", err) ||
        !curve_read(metrics, &r, err))
        return false;
    snprintf(name, sizeof name, "%s", dir);
    for (size_t n = strlen(name); n > 1 && name[n - 1] == '/'; n--) name[n - 1] = 0;
    const char *slash = strrchr(name, '/');
    hbk_text svg = {NULL, NULL, 0, 0, false};
    curve_draw(&svg, &r, slash && slash[1] ? slash + 1 : name);
    bool ok = hbk_text_ok(&svg, err) && hbk_file_write(out ? out : picture, svg.data, svg.len, err);
    hbk_text_free(&svg);
    hbk_free(NULL, r.step);
    return ok;
}

#endif /* TOOL_CURVE_H */
