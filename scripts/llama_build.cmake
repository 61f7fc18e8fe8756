# Read by llama.cpp's project() call (CMAKE_PROJECT_llama.cpp_INCLUDE). llama-cpp-python forces its `common` library ON
# in the cache although it ships none of it; a normal variable set here goes before the cache.
set(LLAMA_BUILD_COMMON OFF)

# llama_attention.cpp (see there) takes the name of ggml's attention, and calls that for what it does not handle itself.
# Only the copy of the source that is being built is changed, once even where this is read again. A function, so that
# llama.cpp's own files see none of its variables.
function(batcher_add_attention)
    set(ops "${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/ops.cpp")
    set(definition "\nvoid ggml_compute_forward_flash_attn_ext(")
    set(renamed "\nstatic void ggml_compute_forward_flash_attn_ext_stock(")
    file(READ "${ops}" source)
    string(FIND "${source}" "${renamed}" found)
    if(NOT found EQUAL -1)
        return()
    endif()
    string(FIND "${source}" "${definition}" found)
    if(found EQUAL -1)
        message(FATAL_ERROR "${ops}: no ggml_compute_forward_flash_attn_ext; adapt scripts/llama_attention.cpp, which "
            "was written for the llama.cpp inside llama-cpp-python 0.3.36")
    endif()
    string(REPLACE "${definition}" "${renamed}" source "${source}")
    file(WRITE "${ops}" "${source}\n#include \"${CMAKE_CURRENT_LIST_DIR}/llama_attention.cpp\"\n")
endfunction()
batcher_add_attention()

# Products of quantized weights of our own.
include("${CMAKE_CURRENT_LIST_DIR}/llama_matmul.cmake")

# GCC's AMX code is sound only with this.
include("${CMAKE_CURRENT_LIST_DIR}/llama_tiles.cmake")
