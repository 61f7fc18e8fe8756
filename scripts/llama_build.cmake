# Read by llama.cpp's project() call (CMAKE_PROJECT_llama.cpp_INCLUDE). llama-cpp-python forces its `common` library ON
# in the cache although it ships none of it; a normal variable set here goes before the cache.
set(LLAMA_BUILD_COMMON OFF)
