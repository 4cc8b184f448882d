/* SPDX-License-Identifier: GPL-2.0 */
/*
 * vgpu_sim plays vendors' vGPU drivers on emulated PCI functions, for tests of programs that manage
 * vGPUs. It has the vendors' sysfs files, names, limits and error numbers, and no GPU.
 *
 *   vgpu_sim_card.c  what a card offers: its types and its capacity rule; the PCI drivers
 *   vgpu_sim_mdev.c  vGPUs as mediated devices
 *   vgpu_sim_vf.c    vGPUs as NVIDIA's vendor-specific VFIO on virtual functions
 *   vgpu_sim_loss.c  what drivers say of a card that is lost
 */
#ifndef VGPU_SIM_H
#define VGPU_SIM_H

#include <linux/list.h>
#include <linux/mdev.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/version.h>

#define VGPU_MAX_TYPES 24
#define VGPU_MAX_VFS 64

struct vgpu_type {
	unsigned int id;		/* NVIDIA's number */
	const char *sysfs_name;		/* behind "nvidia-" or "i915-" */
	const char *name;
	unsigned int framebuffer;	/* MiB; GVT-g: the high graphics memory */
	unsigned int max_instance;
	unsigned int heads;
	unsigned int frl;		/* frame rate limiter */
	const char *resolution;
	unsigned int low_gm, fence, weight;	/* GVT-g only; MiB, registers, share */
};

enum vgpu_rule { VGPU_SAME_TYPE, VGPU_SAME_SIZE, VGPU_MIXED, VGPU_GVTG };

struct vgpu_model {
	const char *name;
	const struct vgpu_type *types;
	unsigned int nr_types;
	unsigned int framebuffer, low_gm, fence;	/* what all vGPUs together may take */
};

/* One physical function with all its virtual functions: they share one pool of vGPUs. */
struct vgpu_card {
	struct list_head list;
	struct pci_dev *physfn;
	unsigned int users;		/* functions that are bound */
	const struct vgpu_model *model;
	enum vgpu_rule rule;
	bool vendor_vfio;		/* what VFs carry: nvidia/current_vgpu_type, or mdev types */
	struct mutex lock;		/* of what follows, and of the VFs' types */
	unsigned int used[VGPU_MAX_TYPES];
	DECLARE_BITMAP(wedged, VGPU_MAX_VFS);
};

unsigned int vgpu_available(struct vgpu_card *card, unsigned int type);

extern struct mdev_driver vgpu_nvidia_mdev_driver;
extern struct mdev_driver vgpu_gvtg_mdev_driver;
int vgpu_parent_probe(struct pci_dev *pdev, struct vgpu_card *card);
void vgpu_parent_remove(struct pci_dev *pdev);

extern unsigned int vgpu_linger_ms;
int vgpu_vf_probe(struct pci_dev *pdev, struct vgpu_card *card);
void vgpu_vf_remove(struct pci_dev *pdev);

/* Since 6.2 every VFIO driver tells how it is bound to iommufd; detaching came with 6.6. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
#define VGPU_IOMMUFD_OPS(kind)                             \
	.bind_iommufd = vfio_iommufd_##kind##_bind,         \
	.unbind_iommufd = vfio_iommufd_##kind##_unbind,     \
	.attach_ioas = vfio_iommufd_##kind##_attach_ioas,   \
	.detach_ioas = vfio_iommufd_##kind##_detach_ioas,
#else
#define VGPU_IOMMUFD_OPS(kind)
#endif

#endif
