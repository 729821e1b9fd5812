package catalog

const crashDirEnv = "PORTOLAN_TEST_CRASH_DIR"

func crashChild(string) {}
