# The container image's build of llama.cpp (see Dockerfile). In place of one CPU library for the machine that compiles
# it, one for each generation of x86-64, of which llama.cpp loads the best that the processor can run.
# Read like llama_build.cmake; takes LLAMA_LIBRARY_DIR, the absolute path of llama_cpp/lib once it is installed.
include("${CMAKE_CURRENT_LIST_DIR}/llama_build.cmake")

set(GGML_NATIVE OFF)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    set(GGML_BACKEND_DL ON)
    set(GGML_CPU_ALL_VARIANTS ON)

    # llama.cpp looks for them beside the running program, which is `python`, and then in the current folder.
    # A definition and not the variable of this name: that one would also install them there, outside of the wheel.
    add_compile_definitions("GGML_BACKEND_DIR=\"${LLAMA_LIBRARY_DIR}\"")

    # llama-cpp-python packs the libraries it knows by name into llama_cpp/lib, and the variants are not among them.
    # llama.cpp's own rules install those, so they are sent to the same place. STRING, since CMake makes the path of
    # a PATH absolute.
    set(CMAKE_INSTALL_BINDIR llama_cpp/lib CACHE STRING "")
    set(CMAKE_INSTALL_LIBDIR llama_cpp/lib CACHE STRING "")
    set(CMAKE_INSTALL_INCLUDEDIR llama_cpp/include CACHE STRING "")
endif()
