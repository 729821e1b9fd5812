package transfer

// taskHeap implements heap.Interface.
type taskHeap struct {
	tasks []*task
	less  func(a, b *task) bool
}

func (h *taskHeap) Len() int           { return len(h.tasks) }
func (h *taskHeap) Less(i, j int) bool { return h.less(h.tasks[i], h.tasks[j]) }
func (h *taskHeap) Swap(i, j int) {
	h.tasks[i], h.tasks[j] = h.tasks[j], h.tasks[i]
	h.tasks[i].place, h.tasks[j].place = i, j
}
func (h *taskHeap) Push(x any) {
	t := x.(*task)
	t.in, t.place = h, len(h.tasks)
	h.tasks = append(h.tasks, t)
}
func (h *taskHeap) Pop() any {
	last := len(h.tasks) - 1
	t := h.tasks[last]
	h.tasks[last] = nil
	h.tasks = h.tasks[:last]
	t.in = nil
	return t
}
