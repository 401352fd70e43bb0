/* HBK_STATIC: the library is private to each file, so two of these link together. One has -DWITH_MAIN. */
#define HBK_STATIC
#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#ifdef WITH_MAIN
int build_other(void);

int main(void)
{
    return build_other() + (hbk_error_text(HBK_ERROR_NONE)[0] == 'n' ? 0 : 1);
}
#else
int build_other(void);

int build_other(void)
{
    return hbk_error_text(HBK_ERROR_MEMORY)[0] == 'o' ? 0 : 1;
}
#endif
