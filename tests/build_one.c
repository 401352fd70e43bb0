/* Compile-only: the file that instantiates the library, and includes the header again afterwards. The build
   matrix compiles it with every compiler, standard and option; the symbol check looks into the result. */
#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include "../humpback.h"

#if defined(STBDS_NO_SHORT_NAMES) || defined(HBK__STB_DS_NAMES)
#error "the header leaves macros of its own use behind"
#endif
