#include "check.h"

int main(int argc, char** argv) { return agnews_fast::check::run_all(argc, argv); }
