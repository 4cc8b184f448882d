// SPDX-License-Identifier: GPL-2.0
/*
 * The cards: which vGPU types they have, how many of them fit beside one another, and the PCI
 * drivers "nvidia" and "i915" that bind any function whose driver_override names them.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "vgpu_sim.h"

static char card_name[16] = "p4";
module_param_string(card, card_name, sizeof(card_name), 0644);
MODULE_PARM_DESC(card, "what a function bound to nvidia is: p4, l40s");

static char vf_card_name[16] = "l40s";
module_param_string(vf_card, vf_card_name, sizeof(vf_card_name), 0644);
MODULE_PARM_DESC(vf_card, "the same for virtual functions");

static char rule_name[16] = "same-size";
module_param_string(rule, rule_name, sizeof(rule_name), 0644);
MODULE_PARM_DESC(rule, "which vGPUs fit on one card: same-type, same-size, mixed");

static char vf_interface[16] = "vendor";
module_param_string(vf_interface, vf_interface, sizeof(vf_interface), 0644);
MODULE_PARM_DESC(vf_interface, "what virtual functions carry: vendor (kernel >= 6.8), mdev");

module_param_named(linger_ms, vgpu_linger_ms, uint, 0644);
MODULE_PARM_DESC(linger_ms, "for how long after its last close a VF's type cannot be cleared");

#define NVIDIA(id, name, heads, frl, fb, res, max) \
	{ id, #id, name, fb, max, heads, frl, res }
#define GVTG(n, high, res, low, fence, weight) \
	{ 0, "GVTg_V5_" #n, "GVTg_V5_" #n, high, n, 0, 0, res, low, fence, weight }

static const struct vgpu_type p4_types[] = {
	NVIDIA(63, "GRID P4-1Q", 4, 60, 1024, "5120x2880", 8),
	NVIDIA(64, "GRID P4-2Q", 4, 60, 2048, "7680x4320", 4),
	NVIDIA(65, "GRID P4-4Q", 4, 60, 4096, "7680x4320", 2),
	NVIDIA(66, "GRID P4-8Q", 4, 60, 8192, "7680x4320", 1),
	NVIDIA(67, "GRID P4-1A", 1, 60, 1024, "1280x1024", 8),
	NVIDIA(68, "GRID P4-2A", 1, 60, 2048, "1280x1024", 4),
	NVIDIA(71, "GRID P4-1B", 4, 45, 1024, "5120x2880", 8),
	NVIDIA(157, "GRID P4-2B", 4, 45, 2048, "5120x2880", 4),
};

static const struct vgpu_type l40s_types[] = {
	NVIDIA(1145, "NVIDIA L40S-1B", 4, 45, 1024, "5120x2880", 32),
	NVIDIA(1146, "NVIDIA L40S-2B", 4, 45, 2048, "5120x2880", 24),
	NVIDIA(1147, "NVIDIA L40S-1Q", 4, 60, 1024, "5120x2880", 32),
	NVIDIA(1148, "NVIDIA L40S-2Q", 4, 60, 2048, "7680x4320", 24),
	NVIDIA(1150, "NVIDIA L40S-4Q", 4, 60, 4096, "7680x4320", 12),
	NVIDIA(1152, "NVIDIA L40S-8Q", 4, 60, 8192, "7680x4320", 6),
	NVIDIA(1154, "NVIDIA L40S-16Q", 4, 60, 16384, "7680x4320", 3),
	NVIDIA(1155, "NVIDIA L40S-24Q", 4, 60, 24576, "7680x4320", 2),
	NVIDIA(1156, "NVIDIA L40S-48Q", 4, 60, 49152, "7680x4320", 1),
	NVIDIA(1157, "NVIDIA L40S-1A", 1, 60, 1024, "1280x1024", 32),
	NVIDIA(1158, "NVIDIA L40S-2A", 1, 60, 2048, "1280x1024", 24),
};

static const struct vgpu_type gvtg_types[] = {
	GVTG(4, 512, "1920x1200", 128, 4, 4),
	GVTG(8, 384, "1024x768", 64, 4, 2),
};

static const struct vgpu_model nvidia_models[] = {
	{ "p4", p4_types, ARRAY_SIZE(p4_types), .framebuffer = 8192 },
	{ "l40s", l40s_types, ARRAY_SIZE(l40s_types), .framebuffer = 49152 },
};

/* What a laptop's graphics has left: one V5_4, or two V5_8. */
static const struct vgpu_model gvtg_model = {
	"gvtg", gvtg_types, ARRAY_SIZE(gvtg_types), .framebuffer = 1024, .low_gm = 128, .fence = 12,
};

static const char *const rule_names[] = { "same-type", "same-size", "mixed" };

static LIST_HEAD(cards);
static DEFINE_MUTEX(cards_lock);

static const struct vgpu_model *find_model(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(nvidia_models); i++)
		if (sysfs_streq(name, nvidia_models[i].name))
			return &nvidia_models[i];
	return NULL;
}

static struct vgpu_card *make_card(struct pci_dev *pdev, bool gvtg)
{
	const char *name = pdev->is_virtfn ? vf_card_name : card_name;
	const struct vgpu_model *model = gvtg ? &gvtg_model : find_model(name);
	int rule = gvtg ? VGPU_GVTG : sysfs_match_string(rule_names, rule_name);
	struct vgpu_card *card;

	if (!model || rule < 0)
		return ERR_PTR(-EINVAL);
	card = kzalloc(sizeof(*card), GFP_KERNEL);
	if (!card)
		return ERR_PTR(-ENOMEM);
	card->physfn = pci_physfn(pdev);
	card->model = model;
	card->rule = rule;
	card->vendor_vfio = sysfs_streq(vf_interface, "vendor");
	mutex_init(&card->lock);
	list_add(&card->list, &cards);
	return card;
}

/* The card of a function; made with the parameters of now when none of its functions is bound. */
static struct vgpu_card *get_card(struct pci_dev *pdev, bool gvtg)
{
	struct vgpu_card *card;

	mutex_lock(&cards_lock);
	list_for_each_entry(card, &cards, list)
		if (card->physfn == pci_physfn(pdev))
			goto found;
	card = make_card(pdev, gvtg);
found:
	if (!IS_ERR(card))
		card->users++;
	mutex_unlock(&cards_lock);
	return card;
}

static void put_card(struct vgpu_card *card)
{
	mutex_lock(&cards_lock);
	if (!--card->users) {
		list_del(&card->list);
		kfree(card);
	}
	mutex_unlock(&cards_lock);
}

/* How many more of a type fit. Called with the card's lock held. */
unsigned int vgpu_available(struct vgpu_card *card, unsigned int type)
{
	const struct vgpu_type *wanted = &card->model->types[type];
	unsigned int framebuffer = 0, low_gm = 0, fence = 0, count = 0, i;

	for (i = 0; i < card->model->nr_types; i++) {
		const struct vgpu_type *other = &card->model->types[i];

		if (!card->used[i])
			continue;
		if (card->rule == VGPU_SAME_TYPE && i != type)
			return 0;
		if (card->rule == VGPU_SAME_SIZE && other->framebuffer != wanted->framebuffer)
			return 0;
		count += card->used[i];
		framebuffer += card->used[i] * other->framebuffer;
		low_gm += card->used[i] * other->low_gm;
		fence += card->used[i] * other->fence;
	}
	framebuffer = (card->model->framebuffer - framebuffer) / wanted->framebuffer;
	switch (card->rule) {
	case VGPU_GVTG:
		return min3(framebuffer, (card->model->low_gm - low_gm) / wanted->low_gm,
			    (card->model->fence - fence) / wanted->fence);
	case VGPU_MIXED:
		return min(framebuffer, wanted->max_instance);
	default:
		return wanted->max_instance > count ? wanted->max_instance - count : 0;
	}
}

static int probe_function(struct pci_dev *pdev, bool gvtg)
{
	struct vgpu_card *card;
	int ret;

	if (pdev->is_physfn)
		return 0;	/* its virtual functions carry the vGPUs */
	card = get_card(pdev, gvtg);
	if (IS_ERR(card))
		return PTR_ERR(card);
	if (pdev->is_virtfn && card->vendor_vfio)
		ret = vgpu_vf_probe(pdev, card);
	else
		ret = vgpu_parent_probe(pdev, card);
	if (ret)
		put_card(card);
	return ret;
}

static int nvidia_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return probe_function(pdev, false);
}

static int i915_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return probe_function(pdev, true);
}

static void remove_function(struct pci_dev *pdev)
{
	struct vgpu_card *card, *found = NULL;

	mutex_lock(&cards_lock);
	list_for_each_entry(card, &cards, list)
		if (card->physfn == pci_physfn(pdev))
			found = card;
	mutex_unlock(&cards_lock);
	if (!found)
		return;
	if (pdev->is_virtfn && found->vendor_vfio)
		vgpu_vf_remove(pdev);
	else
		vgpu_parent_remove(pdev);
	put_card(found);
}

/* No ids: only driver_override binds. VFIO claims the IOMMU group, not the DMA API. */
static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.probe = nvidia_probe,
	.remove = remove_function,
	.driver_managed_dma = true,
};

static struct pci_driver i915_driver = {
	.name = "i915",
	.probe = i915_probe,
	.remove = remove_function,
	.driver_managed_dma = true,
};

static int __init vgpu_sim_init(void)
{
	int ret;

	ret = mdev_register_driver(&vgpu_nvidia_mdev_driver);
	if (ret)
		return ret;
	ret = mdev_register_driver(&vgpu_gvtg_mdev_driver);
	if (ret)
		goto nvidia_mdev;
	ret = pci_register_driver(&nvidia_driver);
	if (ret)
		goto gvtg_mdev;
	ret = pci_register_driver(&i915_driver);
	if (ret)
		goto nvidia;
	return 0;

nvidia:
	pci_unregister_driver(&nvidia_driver);
gvtg_mdev:
	mdev_unregister_driver(&vgpu_gvtg_mdev_driver);
nvidia_mdev:
	mdev_unregister_driver(&vgpu_nvidia_mdev_driver);
	return ret;
}

static void __exit vgpu_sim_exit(void)
{
	pci_unregister_driver(&i915_driver);
	pci_unregister_driver(&nvidia_driver);
	mdev_unregister_driver(&vgpu_gvtg_mdev_driver);
	mdev_unregister_driver(&vgpu_nvidia_mdev_driver);
}

module_init(vgpu_sim_init);
module_exit(vgpu_sim_exit);
MODULE_DESCRIPTION("Plays vendors' vGPU drivers on emulated PCI functions");
MODULE_LICENSE("GPL");
