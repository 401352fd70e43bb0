// The library instantiated and used in C++, beside the headers a C++ program has already included.
#include <string>
#include <vector>

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

int main()
{
    std::string text = hbk_error_text(HBK_ERROR_NONE);
    std::vector<hbk_int> order(10, 1);
    hbk_rng r = hbk_rng_at(1, "build", 0);
    hbk_rng_shuffle(&r, order.data(), static_cast<hbk_int>(order.size()));
    return text == "no error" && order[9] == 1 ? 0 : 1;
}
