/* 04_gradient_check.c - is a backward function right? Ask the forward one - public domain

   Shows    layers and their gradients against finite differences; a mistake, and how a check misses it
   Run      build/examples/04_gradient_check
   Prints   for each layer the largest difference between the two gradients, as a share of the largest one
   Takes    no time; writes nothing. To check a layer of your own, add its two functions to the table */

#define HBK_REAL_DOUBLE /* of a float's seven digits a difference of two sums leaves two or three */
#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

enum { N = 6, C = 8, H = 4, K = 2, D = 6, F = 10, V = 12, MOST = 400 };
#define EPS 1e-5

/* With loss = sum of out[j] * weight[j], the backward function says what d loss / d in[i] is, and

       (loss(in[i] + h) - loss(in[i] - h)) / 2h

   is the same up to h^2 (the curve's bend) and 1e-16 / h (rounding of the loss). h = 1e-5 makes both about
   1e-10. A wrong gradient is rarely off by less than a hundredth, so there is a wide gap for the bar. */
#define STEP 1e-5
#define BAR  1e-7

/* A layer: all that it reads, one after another in `in`, and its two functions. */
typedef struct layer {
    const char *name;
    hbk_int n_in, n_out;
    void (*forward)(hbk_real *out, const hbk_real *in);
    void (*backward)(hbk_real *din, const hbk_real *dout, const hbk_real *in); /* adds to din */
} layer;

static void norm_forward(hbk_real *out, const hbk_real *in)
{
    hbk_rms_norm_forward(out, in, in + N * C, N, C, EPS);
}
static void norm_backward(hbk_real *din, const hbk_real *dout, const hbk_real *in)
{
    hbk_rms_norm_backward(din, din + N * C, dout, in, in + N * C, N, C, EPS);
}

/* The mistake: what a row is divided by is taken for a constant, though it depends on every x of the row. */
static void wrong_backward(hbk_real *din, const hbk_real *dout, const hbk_real *in)
{
    for (int n = 0; n < N; n++) {
        double square = 0;
        for (int c = 0; c < C; c++) square += in[n * C + c] * in[n * C + c];
        for (int c = 0; c < C; c++) {
            din[n * C + c] += dout[n * C + c] * in[N * C + c] / sqrt(square / C + EPS);
            din[N * C + c] += dout[n * C + c] * in[n * C + c] / sqrt(square / C + EPS);
        }
    }
}

/* Attention of two sequences of 4 and 2 tokens in one batch; q, then k, then v. */
static void spans_of(hbk_span spans[2], const hbk_real *in)
{
    const hbk_real *k = in + N * H * D, *v = k + N * K * D;
    hbk_span first = {0, 4, 0, k, v, 0, NULL, NULL, 0, 0, HBK_REAL};
    hbk_span second = {4, 2, 0, k + 4 * K * D, v + 4 * K * D, 0, NULL, NULL, 0, 0, HBK_REAL};
    spans[0] = first;
    spans[1] = second;
}
static void attention_forward(hbk_real *out, const hbk_real *in)
{
    hbk_real work[4096];
    hbk_span spans[2];
    spans_of(spans, in);
    HBK_ASSERT(hbk_attention_work(4, D, 1) <= 4096);
    hbk_attention_forward(out, NULL, in, spans, 2, H, K, D, work, 1);
}
static void attention_backward(hbk_real *din, const hbk_real *dout, const hbk_real *in)
{
    hbk_real out[N * H * D], lse[N * H], work[4096];
    hbk_span spans[2];
    spans_of(spans, in);
    hbk_attention_forward(out, lse, in, spans, 2, H, K, D, work, 1);
    hbk_attention_backward(din, din + N * H * D, din + N * (H + K) * D, dout, out, lse, in, spans, 2, H, K, D,
                           work, 1);
}

/* silu(gate) * up; gate, then up. */
static void swiglu_forward(hbk_real *out, const hbk_real *in)
{
    hbk_swiglu_forward(out, in, in + N * F, N * F);
}
static void swiglu_backward(hbk_real *din, const hbk_real *dout, const hbk_real *in)
{
    hbk_swiglu_backward(din, din + N * F, dout, in, in + N * F, N * F);
}

/* The loss of N rows of logits; one number, and its gradient comes with it. */
static const int32_t targets[N] = {3, 0, 11, 5, 5, 7};
static void loss_forward(hbk_real *out, const hbk_real *in)
{
    out[0] = hbk_cross_entropy(NULL, NULL, in, targets, N, V, 1);
}
static void loss_backward(hbk_real *din, const hbk_real *dout, const hbk_real *in)
{
    hbk_cross_entropy(din, NULL, in, targets, N, V, dout[0]);
}

static double weighted_sum(const layer *l, const hbk_real *in, const hbk_real *weight)
{
    hbk_real out[MOST];
    double sum = 0;
    l->forward(out, in);
    for (hbk_int j = 0; j < l->n_out; j++) sum += out[j] * weight[j];
    return sum;
}

/* The largest difference between the two gradients over the largest number of either. */
static double difference(const layer *l, const hbk_real *weight, hbk_real *in)
{
    hbk_real din[MOST];
    double worst = 0, largest = 0;
    memset(din, 0, sizeof din);
    l->backward(din, weight, in);
    for (hbk_int i = 0; i < l->n_in; i++) {
        hbk_real x = in[i];
        in[i] = x + STEP;
        double above = weighted_sum(l, in, weight);
        in[i] = x - STEP;
        double slope = (above - weighted_sum(l, in, weight)) / (2 * STEP);
        in[i] = x;
        worst = fmax(worst, fabs(slope - din[i]));
        largest = fmax(largest, fmax(fabs(slope), fabs(din[i])));
    }
    return worst / largest;
}

int main(void)
{
    static const layer layers[] = {
        {"rms norm, its x and gain", N * C + C, N * C, norm_forward, norm_backward},
        {"attention, its q, k and v", N * (H + 2 * K) * D, N * H * D, attention_forward,
         attention_backward},
        {"swiglu, its gate and up", 2 * N * F, N * F, swiglu_forward, swiglu_backward},
        {"cross-entropy, its logits", N * V, 1, loss_forward, loss_backward},
        {"an rms norm with a mistake", N * C + C, N * C, norm_forward, wrong_backward}};
    hbk_real in[MOST], weight[MOST];
    bool as_expected = true;
    for (size_t k = 0; k < sizeof layers / sizeof *layers; k++) {
        hbk_rng rng = hbk_rng_at(1, "example", (uint64_t)k);
        for (int i = 0; i < MOST; i++) in[i] = hbk_rng_normal(&rng);
        for (int i = 0; i < MOST; i++) weight[i] = hbk_rng_normal(&rng);
        double d = difference(&layers[k], weight, in);
        bool mistaken = layers[k].backward == wrong_backward;
        printf("%-27s %3d numbers  %.0e  %s\n", layers[k].name, (int)layers[k].n_in, d,
               d < BAR ? "right" : "WRONG");
        as_expected = as_expected && (d >= BAR) == mistaken;
    }

    /* Why random numbers: the forgotten part has the factor sum of x * gain * weight, over a row. Numbers
       that make it zero let the mistake pass. They need not be far-fetched: all weights alike do it for a
       softmax, whose row sums to 1 whatever goes in. */
    for (int i = 0; i < N * C; i++) in[i] = 1;
    for (int i = 0; i < MOST; i++) weight[i] = i % 2 ? 1 : -1;
    for (int i = 0; i < C; i++) in[N * C + i] = 1;
    double missed = difference(&layers[4], weight, in);
    printf("\nthe same mistake, asked with all x alike and weights that cancel: %.0e  %s\n", missed,
           missed < BAR ? "passes for right" : "seen");
    return as_expected && missed < BAR ? 0 : 1;
}
