package clients

import "testing"

func TestDocker_EngineAnswers(t *testing.T) {
	e := Docker(t)
	t.Log(e.Run(t, "version", "--format", "{{.Server.Version}}"))
}

func TestPodman_Answers(t *testing.T) {
	t.Log(Podman(t)("version", "--format", "{{.Client.Version}}"))
}

func TestContainerd_Answers(t *testing.T) {
	t.Log(StartContainerd(t).Run(t, "version"))
}
