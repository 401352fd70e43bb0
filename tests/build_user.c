/* A file that only uses the library; also compiled as C++, and linked to build_one.c. */
#include "../humpback.h"
#include "../humpback.h"

int main(void)
{
    hbk_rng r = hbk_rng_at(1, "build", 0);
    void *p = hbk_alloc(NULL, 1 + hbk_rng_below(&r, 9), sizeof(hbk_real), NULL);
    bool ok = p && hbk_error_text(HBK_ERROR_NONE)[0] == 'n';
    hbk_free(NULL, p);
    return ok ? 0 : 1;
}
