/* gradients.c - loss and gradients of one batch, for gradients.py to compare - public domain

   gradients MODEL ADAPTER|none OUT <batch     prints the sum of the losses

   The batch on stdin: its number of sequences, then for each its length, its tokens, its targets (-1: none).
   OUT becomes a model folder, or with an adapter a PEFT folder, whose weights are the gradients of the mean
   loss: so they carry the names that everyone knows, and chapter 12 writes them. */

#define HUMPBACK_IMPLEMENTATION
#include "../../humpback.h"

enum { MOST = 4096 };

typedef struct input {
    int32_t tokens[MOST], targets[MOST];
    hbk_int start[MOST];
    hbk_batch batch;
    int n_targets;
} input;

static bool read_ids(int32_t *ids, hbk_int n)
{
    for (hbk_int i = 0; i < n; i++)
        if (scanf("%" SCNd32, &ids[i]) != 1) return false;
    return true;
}

static bool read_batch(input *in, hbk_error *err)
{
    int n_seqs, length;
    hbk_int at = 0;
    bool ok = scanf("%d", &n_seqs) == 1 && n_seqs > 0 && n_seqs < MOST;
    for (int s = 0; ok && s < n_seqs; s++) {
        ok = scanf("%d", &length) == 1 && length > 0 && length <= MOST - at &&
             read_ids(in->tokens + at, length) && read_ids(in->targets + at, length);
        if (ok) in->start[s + 1] = at += length;
    }
    if (!ok) return hbk_fail(err, HBK_ERROR_FORMAT, "stdin is no batch of at most %d tokens", MOST);
    for (hbk_int i = 0; i < at; i++) in->n_targets += in->targets[i] >= 0;
    hbk_batch batch = {at, n_seqs, in->tokens, in->targets, in->start};
    in->batch = batch;
    return true;
}

/* A gradient has the shape of what it belongs to: the same adapter once more, emptied. */
static hbk_adapter *empty_adapter(const char *dir, const hbk_model *m, hbk_error *err)
{
    hbk_adapter *a = hbk_adapter_load(dir, m, NULL, err);
    if (a) memset(a->values, 0, (size_t)a->n_values * sizeof *a->values);
    return a;
}

static bool of_adapter(const hbk_model *m, const char *dir, const input *in, const char *out, double *loss,
                       hbk_error *err)
{
    hbk_pass pass;
    memset(&pass, 0, sizeof pass);
    hbk_adapter *a = hbk_adapter_load(dir, m, NULL, err);
    pass.adapter = a;
    pass.scale = 1.0 / in->n_targets;
    if (a) pass.dadapter = empty_adapter(dir, m, err);
    hbk_int n = in->batch.n_tokens;
    hbk_acts *acts = pass.dadapter ? hbk_acts_new(m, a, n, n, HBK_KEEP_ALL, NULL, err) : NULL;
    bool ok = acts && hbk_model_pass(acts, m, &in->batch, &pass, loss, NULL, err) &&
              hbk_adapter_save(pass.dadapter, out, NULL, 0, err);
    hbk_acts_free(acts);
    hbk_adapter_free(pass.dadapter);
    hbk_adapter_free(a);
    return ok;
}

static bool of_model(const hbk_model *m, const input *in, const char *out, double *loss, hbk_error *err)
{
    hbk_pass pass;
    memset(&pass, 0, sizeof pass);
    hbk_real *values = (hbk_real *)hbk_alloc(NULL, hbk_model_count(&m->config), sizeof *values, err);
    if (values) pass.dmodel = hbk_model_view(&m->config, values, NULL, err);
    pass.scale = 1.0 / in->n_targets;
    hbk_int n = in->batch.n_tokens;
    hbk_acts *acts = pass.dmodel ? hbk_acts_new(m, NULL, n, n, HBK_KEEP_ALL, NULL, err) : NULL;
    bool ok = acts && hbk_model_pass(acts, m, &in->batch, &pass, loss, NULL, err) &&
              hbk_model_save(pass.dmodel, out, HBK_F32, err);
    hbk_acts_free(acts);
    hbk_model_free(pass.dmodel);
    hbk_free(NULL, values);
    return ok;
}

int main(int argc, char **argv)
{
    static input in;
    hbk_error err;
    double loss;
    if (argc != 4) {
        fprintf(stderr, "usage: gradients MODEL ADAPTER|none OUT <batch\n");
        return 2;
    }
    hbk_model *m = hbk_model_load(argv[1], NULL, &err);
    bool ok = m && read_batch(&in, &err) &&
              (strcmp(argv[2], "none") == 0 ? of_model(m, &in, argv[3], &loss, &err)
                                            : of_adapter(m, argv[2], &in, argv[3], &loss, &err));
    if (ok)
        printf("%.9g\n", loss);
    else
        fprintf(stderr, "gradients: %s\n", err.message);
    hbk_model_free(m);
    return ok ? 0 : 1;
}
